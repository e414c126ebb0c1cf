"""From the name of a source in an experiment file to its graphs."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from torch_geometric.data import Data

from graphcl.datasets.digits import digits_graph
from graphcl.datasets.node_graph import load_npz, load_npz_graphs
from graphcl.datasets.pyg import load_pyg
from graphcl.datasets.sbm import mixed_sbm
from graphcl.datasets.validation import check_every_class
from graphcl.errors import DataError

DATA_VARIABLE = "GRAPHCL_DATA"


def load(source: str | Path, *, root: str | Path | None = None) -> Data:
    """Load one graph by the name of its source.

    Args:
        source: ``"digits"``; ``"mixed"``, :func:`mixed_sbm` with its defaults;
            ``"pyg:Planetoid/Cora"`` (see :func:`load_pyg`); or the path of a file that ends in
            ``.npz`` (see :func:`load_npz`).  A relative path is looked up in the working directory
            first and then under ``root``.
        root: The folder of data sets; without it, the folder that the environment variable
            ``GRAPHCL_DATA`` names.

    Returns:
        The graph, as :func:`validate` describes it.

    Raises:
        DataError: The source is unknown, not found, or breaks a rule.
    """
    text = str(source)
    if text == "digits":
        return digits_graph()
    if text == "mixed":
        return mixed_sbm()
    if text.startswith("pyg:"):
        folder = _root(root)
        if folder is None:
            raise DataError(f"{text}: say where its files are: give root or set {DATA_VARIABLE}")
        return load_pyg(text.removeprefix("pyg:"), folder)
    if text.endswith(".npz"):
        return load_npz(locate(text, root))
    raise DataError(
        f"{text!r} is no source: use 'digits', 'mixed', 'pyg:CLASS/NAME' or the path of an .npz "
        "file"
    )


def load_silos(
    path: str | Path | Sequence[str | Path], *, root: str | Path | None = None
) -> list[Data]:
    """Load one graph per client: every ``.npz`` file of a folder, or every graph of one file.

    They are sorted by the name of the file, or of the graph in the file (see
    :mod:`graphcl.datasets.node_graph`), or come in the order of several paths, of one client each.
    A client may lack a class, but each class from 0 to the largest needs a node somewhere; the
    number of classes is :func:`count_classes` of the graphs.

    Args:
        path: The folder or file, looked up as :func:`load` looks up a file; or several, each as
            :func:`load_silo` takes it.
        root: See :func:`load`.

    Returns:
        The graphs, which share one number of features.

    Raises:
        DataError: There is no graph, one breaks a rule, or they do not agree.
    """
    if isinstance(path, str | Path):
        place: str | Path = locate(path, root)
        graphs = load_npz_graphs(place) if Path(place).is_file() else _load_folder(Path(place))
    else:
        place = "the clients' graphs"
        graphs = {str(one): load_silo(one, root=root) for one in path}
        if len(graphs) < len(path):
            raise DataError(f"{', '.join(map(str, path))}: one file is that of two clients")
    first, *others = graphs
    for name in others:
        if graphs[name].num_features != graphs[first].num_features:
            raise DataError(
                f"{place}: x of {name} has {graphs[name].num_features} columns but that of {first} "
                f"has {graphs[first].num_features}: clients must share one feature space"
            )
    check_every_class([graph.y for graph in graphs.values()], str(place))
    return list(graphs.values())


def load_silo(path: str | Path, *, root: str | Path | None = None) -> Data:
    """Load the graph of one client, which may lack classes that others hold.

    Args:
        path: An ``.npz`` file, or a folder with one, looked up as :func:`load` looks up a file.
        root: See :func:`load`.

    Raises:
        DataError: There is no such file, or it breaks a rule.
    """
    return load_npz(only_file(locate(path, root), ".npz"), every_class=False)


def only_file(place: Path, *endings: str) -> Path:
    """Return a file, or the one in a folder whose name has the first ending that any has.

    Raises:
        DataError: The folder holds none, or several.
    """
    if not place.is_dir():
        return place
    for ending in endings:
        files = sorted(file for file in place.iterdir() if file.name.endswith(ending))
        if len(files) == 1:
            return files[0]
        if files:
            raise DataError(
                f"{place}: holds {', '.join(file.name for file in files)}, of which one alone can "
                "be read: name the file itself, or move the others away"
            )
    raise DataError(f"{place}: holds no file that ends in {' or '.join(endings)}")


def _load_folder(folder: Path) -> dict[str, Data]:
    files = sorted(folder.glob("*.npz"))
    if not files:
        raise DataError(f"{folder}: no .npz file: put one file per client in this folder")
    return {file.name: load_npz(file, every_class=False) for file in files}


def count_classes(graphs: Iterable[Data]) -> int:
    """Return the number of classes C of graphs that share labels 0 to C - 1."""
    return max(int(graph.y.max()) for graph in graphs) + 1


def _root(root: str | Path | None) -> Path | None:
    folder = root if root is not None else os.environ.get(DATA_VARIABLE)
    return Path(folder).expanduser() if folder else None


def locate(path: str | Path, root: str | Path | None) -> Path:
    """Return where a file or folder lies: in the working directory, else under the data root.

    Raises:
        DataError: It is in neither; the message names both.
    """
    relative = Path(path).expanduser()
    folder = _root(root)
    places = [Path.cwd() / relative]
    if folder is not None and not relative.is_absolute():
        places.append(folder / relative)
    for place in places:
        if place.exists():
            return place
    hint = "" if folder is not None else f"; {DATA_VARIABLE} is not set"
    raise DataError(f"{path}: not found; looked at {' and '.join(map(str, places))}{hint}")
