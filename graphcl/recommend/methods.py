"""The recommenders by the names that files and commands call them, and their files."""

from pathlib import Path

from graphcl.errors import GraphCLError
from graphcl.recommend.baselines import GRU4Rec, SASRec
from graphcl.recommend.bipcl import BIPCL
from graphcl.recommend.faerec import FAERec
from graphcl.recommend.popularity import Popularity
from graphcl.recommend.recommender import Recommender
from graphcl.recommend.slsrec import SLSRec
from graphcl.training import load_weights

RECOMMENDERS: dict[str, type[Recommender]] = {
    "pop": Popularity,
    "gru4rec": GRU4Rec,
    "sasrec": SASRec,
    "bipcl": BIPCL,
    "faerec": FAERec,
    "slsrec": SLSRec,
}


def load_recommender(path: str | Path) -> Recommender:
    """Read what the ``save`` of any recommender wrote.

    Raises:
        GraphCLError: The file is missing, or is not one of a recommender.
    """
    _, header = load_weights(path)
    kinds = {kind.__name__: kind for kind in RECOMMENDERS.values()}
    method = str(header.get("method"))
    if method not in kinds:
        raise GraphCLError(
            f"{path}: no saved recommender: its header names the method {method}, not one of "
            f"{', '.join(kinds)}"
        )
    return kinds[method].load(path)
