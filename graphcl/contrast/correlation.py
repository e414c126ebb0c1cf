"""The correlation loss: two views agree channel by channel, and no two channels say the same."""

from torch import Tensor

from graphcl.errors import GraphCLError

_SMALLEST = 1e-5  # added to deviations


def correlation_loss(z1: Tensor, z2: Tensor, *, redundancy: float = 0.005) -> Tensor:
    """Return how far the correlations of two views' channels are from the identity.

    With C the ``[D, D]`` correlations over the samples, ``sum_i (C_ii - 1)^2 + redundancy sum_{i !=
    k} C_ik^2``.  Deviations are unbiased and the products are divided by N, so that a channel's
    correlation with itself is ``(N - 1) / N``.  Fewer than two samples give a differentiable 0.

    Shapes:
        z1, z2: ``[N, D]``, row i of both being the same sample.  Returns a scalar.

    Args:
        z1: Embeddings of the first view.
        z2: Embeddings of the second view.
        redundancy: Weight of the correlations between different channels.

    Raises:
        GraphCLError: The views differ in shape or are no matrices.

    Source:
        Zbontar et al., Barlow Twins, ICML 2021, eq. 1, normalised as in FAERec (Wei et al.,
        arXiv 2604.03688).

    Example:
        >>> z = torch.tensor([[1.0, 1.0], [-1.0, 1.0], [1.0, -1.0], [-1.0, -1.0]])
        >>> correlation_loss(z, z)
        tensor(0.1250)
    """
    if z1.dim() != 2 or z1.shape != z2.shape:
        raise GraphCLError(
            f"correlation_loss: z1 has shape {tuple(z1.shape)} and z2 {tuple(z2.shape)}; "
            "pass matrices of the same samples in both views"
        )
    if len(z1) < 2:
        return (z1 * z2).sum() * 0
    correlation = _standardized(z1).T @ _standardized(z2) / len(z1)
    own = correlation.diagonal()
    others = correlation.square().sum() - own.square().sum()
    return (own - 1).square().sum() + redundancy * others


def _standardized(z: Tensor) -> Tensor:
    return (z - z.mean(0)) / (z.std(0) + _SMALLEST)
