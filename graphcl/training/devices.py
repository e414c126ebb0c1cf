"""Where a model is placed."""

import torch

from graphcl.errors import GraphCLError


def select_device(gpus: float) -> torch.device:
    """Return the device for a share of a GPU: the CPU where the share is zero.

    Raises:
        GraphCLError: If a GPU is asked for and none is visible to this process.
    """
    if gpus <= 0:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise GraphCLError(
            f"{gpus:g} GPUs per client were asked for, but this process sees no CUDA device; "
            "set simulation.gpus_per_client = 0 or install torch's build for your GPU"
        )
    return torch.device("cuda")
