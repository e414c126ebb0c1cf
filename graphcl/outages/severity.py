"""Classes of how hard an event hits a location."""

import torch
from torch import Tensor

# Largest share of the customers in each class but the last: none, up to 1 %, up to 10 %, more.
BOUNDARIES = (0.0, 0.01, 0.1)
NUM_SEVERITIES = len(BOUNDARIES) + 1


def severity(outages: Tensor, customers: Tensor) -> Tensor:
    """Return the class of each count: 0 for no outage, then by the share of customers.

    Where nobody is served, an outage is of the last class.

    Shapes:
        outages: ``[..., N]``; customers: ``[N]``. Returns int64 ``[..., N]`` in [0, 4).

    Source:
        ours.

    Example:
        >>> severity(torch.tensor([0, 1, 50, 500]), torch.full((4,), 1000.0))
        tensor([0, 1, 2, 3])
    """
    # In float32 a share of 1 % need not be the one of the boundary.
    share = outages.double() / customers.double().clamp(min=1)
    return torch.bucketize(share, torch.tensor(BOUNDARIES, dtype=torch.double))
