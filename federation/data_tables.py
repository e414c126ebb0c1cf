"""The tables of the experiment file that say where the data come from."""

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, model_validator

from federation.keys import Table, key, listed, pairs, split_pairs


class Digits(Table):
    """scikit-learn's handwritten digits as a k-nearest-neighbour graph."""

    neighbors: int = key(8, "nearest neighbours of every image", ge=1)


class ContextualSBM(Table):
    """A contextual stochastic block model: a graph generator with known homophily."""

    nodes: int = key(1000, "number of nodes", ge=2)
    classes: int = key(5, "number of classes, equally large", ge=2)
    features: int = key(32, "width of the features", ge=1)
    degree: float = key(10.0, "expected degree", gt=0)
    homophily: float = key(0.8, "expected share of edges within a class", ge=0, le=1)
    signal: float = key(1.0, "distance of the class means from the origin, in noise units", ge=0)


class OutageData(Table):
    """Storms and their outages, divided over the clients by district."""

    columns: Annotated[str, AfterValidator(pairs)] = key(
        "", "what the file calls a key that we name otherwise, e.g. 'event=storm, district=city'"
    )
    units: Annotated[str, AfterValidator(pairs)] = key(
        "", "units of features whose name has none, e.g. 'gust=m/s, rain=mm'"
    )
    val_events: Annotated[str, AfterValidator(listed)] = key(
        "", "events to validate on; empty = the last fifth of those left"
    )
    test_events: Annotated[str, AfterValidator(listed)] = key(
        "", "events to test on; empty = the last quarter"
    )
    newcomer: str = key("", "district that has seen few storms; empty = none")
    newcomer_events: Annotated[str, AfterValidator(listed)] = key(
        "", "events that the newcomer trains on"
    )
    locations: int = key(400, "storms: number of locations", ge=4)
    events: int = key(24, "storms: number of events", ge=4)
    districts: int = key(4, "storms: number of districts", ge=1)

    @property
    def column_names(self) -> dict[str, str]:
        """:attr:`columns` by key."""
        return split_pairs(self.columns)

    @property
    def feature_units(self) -> dict[str, str]:
        """:attr:`units` by feature."""
        return split_pairs(self.units)

    @model_validator(mode="after")
    def _newcomer_has_events(self) -> Self:
        if bool(self.newcomer) != bool(self.newcomer_events):
            raise ValueError("newcomer and newcomer_events go together; give both or neither")
        return self


class SeriesData(Table):
    """Series of sensors, cut in the order of time into steps to train, validate and test on."""

    train_ratio: float = key(0.7, "share of the steps, the first, to train on", gt=0, lt=1)
    val_ratio: float = key(
        0.1, "share of the steps after them to validate on; the rest tests", gt=0, lt=1
    )
    nodes: int = key(20, "confounded: sensors of every client", ge=1)
    steps: int = key(2016, "confounded: number of steps, of five minutes", ge=1)

    @model_validator(mode="after")
    def _test_steps_remain(self) -> Self:
        if self.train_ratio + self.val_ratio >= 1:
            raise ValueError(
                f"train_ratio + val_ratio = {self.train_ratio + self.val_ratio:g} leaves no test "
                "steps; their sum must stay below 1"
            )
        return self


class InteractionData(Table):
    """Interactions of users with items; each user's last two validate and test."""

    names: Annotated[str, AfterValidator(pairs)] = key(
        "", "what the files call a column that we name otherwise, e.g. 'user=user_id, item=item_id'"
    )
    item_tables: Annotated[str, AfterValidator(listed)] = key(
        "", "tables of items that go with the .csv files of data.source, in their order"
    )
    category_separator: str = key(
        "", "what stands between the categories of an item, of which the first counts; empty = one"
    )
    categories: Annotated[str, AfterValidator(listed)] = key(
        "", "all categories that items may have, which edge nodes must know; empty = those there"
    )
    duplicates: Literal["refuse", "drop", "keep"] = key(
        "refuse", "what to do with a second row of the same user, item and time"
    )
    min_events: int = key(
        1, "events that every user and every item has at least; the others are left out", ge=1
    )
    catalogue: float = key(
        1.0,
        "users: share of the items that every client offers, drawn at random; events with others "
        "are left out",
        gt=0,
        le=1,
    )
    users: int = key(1000, "shoppers: number of users", ge=1)
    items: int = key(500, "shoppers: number of items", ge=40)

    @property
    def column_names(self) -> dict[str, str]:
        """:attr:`names` by column."""
        return split_pairs(self.names)

    @property
    def category_names(self) -> list[str]:
        """What :attr:`categories` lists."""
        return [name for name in self.categories.split(", ") if name]

    @property
    def item_paths(self) -> list[str]:
        """What :attr:`item_tables` lists."""
        return [path for path in self.item_tables.split(", ") if path]


class ImageData(Table):
    """Images; those to train and those to test on are put together and split on every client."""

    size: int = key(
        0,
        "height and width to bring all images to, which edge nodes must know; 0 = as they are",
        ge=0,
    )
    classes: Annotated[str, AfterValidator(listed)] = key(
        "", "names of all classes in their order, which edge nodes must know; empty = the source's"
    )

    @property
    def class_names(self) -> list[str]:
        """What :attr:`classes` lists."""
        return [name for name in self.classes.split(", ") if name]


class DataTable(Table):
    """Where the data come from and how they are split on every client."""

    source: str = key(
        "digits",
        "digits, csbm, pyg:CLASS/NAME, an .npz file, or (natural) a folder of .npz files, one "
        "that holds several graphs, or several files, 'a.npz, b.npz'; of outages: storms, or "
        "folders of CSV tables and .npz files, one to be divided or one of each client; "
        "of series: confounded, or .npz files and .toml descriptions, e.g. 'a.npz, b.toml'; of "
        "interactions: shoppers, or .npz, .csv or .csv.gz files; of images: digits, or .npz files "
        "and folders, e.g. 'a.npz, b.npz', a domain each over which the clients are dealt out, or "
        "(natural) one of each client",
        min_length=1,
    )
    root: str = key("", "folder of data sets; empty = the environment variable GRAPHCL_DATA")
    split: Literal["random", "stored"] = key(
        "random",
        "random = each client's nodes anew, by the two ratios below; stored = by the masks that "
        "the graphs came with, of several splits the one with the number run.seed modulo theirs",
    )
    train_ratio: float = key(0.2, "share of each class to train on", gt=0, lt=1)
    val_ratio: float = key(0.4, "share of each class to validate on; the rest tests", gt=0, lt=1)
    num_classes: int = key(0, "classes that the data must have; 0 = whatever they have", ge=0)
    digits: Digits = Digits()
    csbm: ContextualSBM = ContextualSBM()
    outages: OutageData = OutageData()
    series: SeriesData = SeriesData()
    interactions: InteractionData = InteractionData()
    images: ImageData = ImageData()

    @property
    def paths(self) -> list[str]:
        """What :attr:`source` lists where it names files."""
        return listed(self.source).split(", ")

    @model_validator(mode="after")
    def _test_nodes_remain(self) -> Self:
        if self.train_ratio + self.val_ratio >= 1:
            raise ValueError(
                f"train_ratio + val_ratio = {self.train_ratio + self.val_ratio:g} leaves no test "
                "nodes; their sum must stay below 1"
            )
        return self


class OwnData(DataTable):
    """The data as a node knows them that has its own alone; never read from a file."""

    own: str

    @property
    def paths(self) -> list[str]:
        """The one file or folder that is there."""
        return [self.own]
