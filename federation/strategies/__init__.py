"""Federated algorithms, one file each, both halves in it."""

from federation.strategies.base import Algorithm, Exchange, Facts
from federation.strategies.feddbp import FEDDBP
from federation.strategies.fedopt import FEDADAM, FEDAVGM
from federation.strategies.fedproto import FEDPROTO
from federation.strategies.fedtgp import FEDTGP
from federation.strategies.local import LOCAL
from federation.strategies.pooled import POOLED
from federation.strategies.scfsgl import SCFSGL
from federation.strategies.weights import (
    FEDAVG,
    FEDMEDIAN,
    FEDPER,
    FEDPROX,
    FEDTRIMMEDAVG,
    KRUM,
    LGFEDAVG,
)

ALGORITHMS: dict[str, Algorithm] = {
    "local": LOCAL,
    "fedavg": FEDAVG,
    "fedavgm": FEDAVGM,
    "fedadam": FEDADAM,
    "fedprox": FEDPROX,
    "fedper": FEDPER,
    "lgfedavg": LGFEDAVG,
    "fedproto": FEDPROTO,
    "fedtgp": FEDTGP,
    "feddbp": FEDDBP,
    "scfsgl": SCFSGL,
    "pooled": POOLED,
    "fedmedian": FEDMEDIAN,
    "fedtrimmedavg": FEDTRIMMEDAVG,
    "krum": KRUM,
}

__all__ = ["ALGORITHMS", "Algorithm", "Exchange", "Facts"]
