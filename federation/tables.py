"""The tables of the experiment file: every key with its type, default, rules and meaning.

Those of the data are in :mod:`federation.data_tables`.
"""

from typing import Annotated, Literal

from pydantic import AfterValidator

from federation.fault_tables import RobustTable
from federation.keys import Table, key, known_names, listed
from graphcl.images import IMAGE_ENCODERS
from graphcl.nodes import ENCODERS, ASPECTConfig
from graphcl.outages import SAHGNNConfig
from graphcl.recommend import RECOMMENDERS, RecommenderConfig, SLSRecConfig
from graphcl.spatiotemporal import SCFSGLConfig

ROBUST_STRATEGIES = ("fedmedian", "fedtrimmedavg", "krum")
STRATEGIES = (
    "local",
    "fedavg",
    "fedavgm",
    "fedadam",
    "fedprox",
    "fedper",
    "lgfedavg",
    "fedproto",
    "fedtgp",
    "feddbp",
    "scfsgl",
    "pooled",
    *ROBUST_STRATEGIES,
)
# Those whose clients all begin from the server's weights, or from a part of them.
AVERAGING_STRATEGIES = ("fedavg", "fedavgm", "fedadam", "fedprox", "fedper", *ROBUST_STRATEGIES)
# One model for all: its weights cross the wire. Under "lgfedavg" the last layers alone do.
WEIGHT_STRATEGIES = (*AVERAGING_STRATEGIES, "pooled")
# Their penalty reads labelled samples; under the others labels do not reach a label-free encoder.
PROTOTYPE_STRATEGIES = ("fedproto", "fedtgp", "feddbp")
# What they add to the losses of several clients can be told from one pass over all samples.
BATCHED_STRATEGIES = (
    "fedavg",
    "fedavgm",
    "fedadam",
    "local",
    *ROBUST_STRATEGIES,
    *PROTOTYPE_STRATEGIES,
)
# Their server reads sums over clients alone, so that these may be masked.
SUMMED_STRATEGIES = ("fedproto", "feddbp")
# Ways of dividing that read the classes alone.
LABEL_SKEWS = ("dirichlet", "practical", "pathological")
TRAINED_RECOMMENDERS = tuple(
    name for name, kind in RECOMMENDERS.items() if issubclass(kind.config_type, RecommenderConfig)
)


def _encoders(text: str) -> str:
    known = (*ENCODERS, *IMAGE_ENCODERS)
    names = known_names(text, known, "encoder")
    if not names:
        raise ValueError(f"name at least one encoder (known: {', '.join(known)})")
    return names


def _recommender(text: str) -> str:
    name = known_names(text, TRAINED_RECOMMENDERS, "recommender")
    if name not in TRAINED_RECOMMENDERS:
        raise ValueError(f"name one recommender (known: {', '.join(TRAINED_RECOMMENDERS)})")
    return name


def _strategy(text: str) -> str:
    name = known_names(text, STRATEGIES, "strategy")
    if name not in STRATEGIES:
        raise ValueError(f"name one strategy (known: {', '.join(STRATEGIES)})")
    return name


def _strategies(text: str) -> str:
    return known_names(text, STRATEGIES, "strategy")


class Task(Table):
    """What the clients learn."""

    name: Literal["classify", "images", "pretrain", "outages", "forecast", "recommend"] = key(
        "classify",
        "classes of nodes or of images from labels, embeddings of nodes without labels, probed "
        "linearly, the outages of storms, one district per client, the next steps of series, one "
        "graph of sensors each, or the item that a user takes next, one platform or some users "
        "each",
    )


class Run(Table):
    """What is run and how long."""

    name: str = key("experiment", "part of the run directory's name", pattern=r"^[A-Za-z0-9._-]+$")
    seed: int = key(0, "decides everything random", ge=0)
    rounds: int = key(50, "rounds of training", ge=1)
    evaluate_every: int = key(1, "rounds between evaluations of all clients", ge=1)
    compare: Annotated[str, AfterValidator(_strategies)] = key(
        "", "strategies to run beside strategy.name on the same partitions, e.g. 'local, pooled'"
    )
    min_success: float = key(
        0.5, "share of a cohort that must succeed, else the run stops", ge=0, le=1
    )
    timeout: float = key(600.0, "seconds to wait for the replies of a round; 0 = forever", ge=0)
    directory: str = key("", "run directory under flwr run; empty = a new one under runs/")


class Partition(Table):
    """How the data are divided over the clients."""

    scheme: Literal["dirichlet", "practical", "pathological", "louvain", "natural", "users"] = key(
        "dirichlet",
        "by skewed classes, by them until a client has its even share, by few classes each, by "
        "graph communities, as the data come: a graph, a district, a series, a platform or a "
        "source of images each, or users dealt out evenly, one each where there are as many "
        "clients",
    )
    clients: int = key(10, "number of clients", ge=1)
    alpha: float = key(0.3, "dirichlet, practical: the smaller, the more skewed", gt=0)
    classes: int = key(2, "pathological: classes of every client", ge=1)
    min_nodes: int = key(10, "nodes, or images, that every client is dealt at least", ge=1)


class Model(Table):
    """The encoders of nodes or images.

    Those of images read the widths alone, other tasks one width and, in part, the dropout.
    """

    encoders: Annotated[str, AfterValidator(_encoders)] = key(
        "gcn",
        f"one or more of {', '.join(ENCODERS)}, or of images {', '.join(IMAGE_ENCODERS)}; client i "
        "takes the (i mod n)-th",
    )
    hidden_channels: int = key(
        64, "width between the layers; of images, in the first stage, and multiples after it", ge=1
    )
    embedding_channels: int = key(64, "width of embeddings and prototypes, alike everywhere", ge=1)
    num_layers: int = key(2, "layers of the encoder", ge=1)
    dropout: float = key(0.5, "dropout in the encoder", ge=0, lt=1)

    @property
    def encoder_names(self) -> list[str]:
        """The encoders as a list."""
        return self.encoders.split(", ")


_ASPECT = ASPECTConfig()


class AspectTable(Table):
    """ASPECT, beside what it shares with the other label-free methods."""

    order: int = key(_ASPECT.order, "degree of the polynomial filters", ge=1)
    fusion: Literal["sum", "concat"] = key(
        _ASPECT.fusion, "what a node takes of the channels is added up or put side by side"
    )
    sharpness: float = key(_ASPECT.sharpness, "how steep the filters are at the start", gt=0)
    cutoff: float = key(
        _ASPECT.cutoff, "frequency from which the low-pass starts with nothing", gt=0, le=2
    )
    input_scale: float = key(
        _ASPECT.input_scale, "multiplies the features; large lets them dominate the start", gt=0
    )
    policy: Literal["node", "global", "low", "high", "mean"] = key(
        _ASPECT.policy, "how the channels are mixed: per node, for all nodes, one alone, or evenly"
    )
    channel_weight: float = key(
        _ASPECT.channel_weight, "weight of the contrast within each channel", ge=0
    )
    evidence_weight: float = key(
        _ASPECT.evidence_weight, "weight of the evidence that regularises the policy", ge=0
    )
    evidence_temperature: float = key(
        _ASPECT.evidence_temperature, "temperature of that evidence", gt=0
    )
    filter_learning_rate: float = key(
        _ASPECT.filter_learning_rate, "step size of the filters", gt=0
    )


class Pretrain(Table):
    """A label-free method; its width is ``model.embedding_channels``, its steps are ``train``'s."""

    method: Literal["aspect", "grace"] = key("aspect", "the label-free method")
    drop_features: float = key(
        _ASPECT.drop_features, "share of features dropped in a view", ge=0, lt=1
    )
    drop_edges: float = key(_ASPECT.drop_edges, "share of edges dropped in a view", ge=0, lt=1)
    temperature: float = key(_ASPECT.temperature, "temperature of the contrast", gt=0)
    num_anchors: int = key(512, "nodes contrasted per step; time grows with its square", ge=2)
    probe_decay: float = key(0.1, "L2 penalty of the linear probe", gt=0)
    aspect: AspectTable = AspectTable()


_OUTAGES = SAHGNNConfig()


class Outages(Table):
    """SA-HGNN; its width is ``model.embedding_channels``, its steps are ``train``'s."""

    target: Literal["raw", "log", "sqrt", "poisson"] = key(
        _OUTAGES.target, "scale on which counts are compared, or their likelihood"
    )
    total_weight: float = key(
        _OUTAGES.total_weight, "weight of the comparison between totals of events", ge=0
    )
    exposure: Literal["customers", "none"] = key(_OUTAGES.exposure, "what a count is relative to")
    static_graph: Literal["nearest", "borders"] = key(
        _OUTAGES.static_graph, "neighbours in the static graph"
    )
    branch: Literal["dynamic", "static"] = key(
        _OUTAGES.branch, "graph of the event's branch: learned per event, or the static one"
    )
    contrast_weight: float = key(
        _OUTAGES.contrast_weight, "weight of the contrast between situations", ge=0
    )
    dropout: float = key(_OUTAGES.dropout, "dropout after each activation", ge=0, lt=1)


_FORECAST = SCFSGLConfig()


class Forecast(Table):
    """SC-FSGL; its width is ``model.embedding_channels``, its steps are ``train``'s."""

    history: int = key(_FORECAST.history, "steps that a forecast reads", ge=1)
    horizon: int = key(_FORECAST.horizon, "steps that it tells", ge=1)
    batch_windows: int = key(_FORECAST.batch_windows, "windows per step", ge=1)
    epoch_windows: int = key(
        _FORECAST.epoch_windows, "windows per epoch, drawn afresh; 0 = all", ge=0
    )
    num_layers: int = key(_FORECAST.num_layers, "blocks of the temporal side", ge=1)
    hops: int = key(_FORECAST.hops, "steps along the graph, in each direction", ge=1)
    separation: Literal["conditional", "transfer", "off"] = key(
        _FORECAST.separation,
        "what divides shared and own factors: conditional = masks from the round before, transfer "
        "= these, and an own part that corrects what the shared one forecasts alone, off = nothing",
    )
    num_prototypes: int = key(
        _FORECAST.num_prototypes, "rows of the codebook, at least 2; 0 = no codebook", ge=0
    )
    temperature: float = key(_FORECAST.temperature, "of the alignment with the codebook", gt=0)
    alignment_weight: float = key(
        _FORECAST.alignment_weight, "weight of the alignment with the codebook", ge=0
    )
    invariance_weight: float = key(
        _FORECAST.invariance_weight, "weight of the invariance penalty", ge=0
    )


_RECOMMEND = RecommenderConfig()


class Recommend(Table):
    """A recommender; its width is ``model.embedding_channels``, its steps are ``train``'s."""

    method: Annotated[str, AfterValidator(_recommender)] = key(
        "sasrec", f"what recommends: {', '.join(TRAINED_RECOMMENDERS)}"
    )
    length: int = key(_RECOMMEND.length, "events that are read at most, the latest", ge=1)
    negatives: int = key(
        _RECOMMEND.negatives, "items that a target is compared with; 0 = the whole catalogue", ge=0
    )
    batch_size: int = key(_RECOMMEND.batch_size, "windows of users' histories per step", ge=1)
    gap: int = key(
        SLSRecConfig().gap, "seconds of a pause after which a session begins, under slsrec", ge=1
    )


class Images(Table):
    """Training on images; the networks are ``model``'s, the steps ``train``'s."""

    batch_size: int = key(10, "images per step", ge=1)


class Train(Table):
    """Local training on every client and round."""

    epochs: int = key(3, "passes over the client's data per round", ge=1)
    optimizer: Literal["adam", "sgd"] = key("adam", "adam or sgd")
    learning_rate: float = key(0.01, "step size", gt=0)
    weight_decay: float = key(5e-4, "L2 penalty", ge=0)


class FedAvgMTable(Table):
    """FedAvgM."""

    learning_rate: float = key(1.0, "of the server; what the mean move is multiplied by", gt=0)
    momentum: float = key(0.9, "share of the last step that the next one keeps", ge=0, lt=1)


class FedAdamTable(Table):
    """FedAdam."""

    learning_rate: float = key(0.01, "of the server, about what a weight moves in a round", gt=0)
    beta_1: float = key(0.9, "decay of the mean of the moves", ge=0, lt=1)
    beta_2: float = key(0.99, "decay of the mean of their squares", ge=0, lt=1)
    tau: float = key(1e-8, "moves much smaller than this count as none", gt=0)


class FedProxTable(Table):
    """FedProx."""

    proximal_mu: float = key(0.01, "weight of the proximal term", ge=0)


class FedProtoTable(Table):
    """FedProto."""

    lambda_align: float = key(1.0, "weight of the distance to the class's prototype", ge=0)
    global_weight: Literal["uniform", "count"] = key(
        "count", "mean over clients by class size (paper) or plain (authors' code)"
    )
    inference: Literal["head", "prototype"] = key(
        "head", "what counts as the prediction; both are recorded"
    )


class FedTGPTable(Table):
    """FedTGP."""

    lambda_align: float = key(10.0, "weight of the distance to the class's prototype", ge=0)
    margin: Literal["code", "paper"] = key(
        "code",
        "largest distance of a class from its nearest one (authors' code) or of any two (paper)",
    )
    margin_limit: float = key(100.0, "what the margin is at most", gt=0)
    epochs: int = key(100, "the server's passes over the prototypes of a round", ge=1)
    batch_size: int = key(10, "prototypes per step of the server", ge=1)
    learning_rate: float = key(0.01, "step size of the server", gt=0)
    inference: Literal["head", "prototype"] = key(
        "prototype", "what counts as the prediction; both are recorded"
    )


class FedDBPTable(Table):
    """FedDBP."""

    fuse: Literal["concat", "sum", "none"] = key(
        "sum",
        "join the branches by their mean, or side by side with half the channels each; none = no "
        "projector, both losses on the embedding itself",
    )
    lambda_align: float = key(1.0, "weight of the alignment term; 0 = off", ge=0)
    lambda_contrast: float = key(1.0, "weight of the contrastive term; 0 = off", ge=0)
    temperature: float = key(1.0, "temperature of the contrastive term", gt=0)
    global_weight: Literal["fisher", "count", "uniform"] = key(
        "fisher", "weights of the global mean: class size times Fisher, class size, or none"
    )
    fisher: Literal["client", "server"] = key(
        "client",
        "whose head says which channels matter: the client's, or one that the server trains on "
        "the prototypes",
    )
    fisher_bits: Literal[32, 1] = key(
        32, "of the importance of a channel on the wire; 1 = whether it reaches the threshold"
    )
    fisher_floor: float = key(0.1, "added to the scaled Fisher information in the mean", gt=0)
    personal: Literal["soft", "hard", "similar", "off"] = key(
        "soft",
        "how a client keeps its own value on the channels that matter to it; similar = a mean of "
        "all by likeness instead",
    )
    keep: float = key(0.5, "soft: share of the own value kept at full importance", ge=0, le=1)
    threshold: float = key(
        0.4, "hard, and one bit: importance from which the own value is kept", ge=0, le=1
    )
    similarity_temperature: float = key(1.0, "similar: temperature of the likeness", gt=0)
    inference: Literal["head", "prototype"] = key(
        "prototype", "what counts as the prediction; both are recorded"
    )

    @property
    def sends_fisher(self) -> bool:
        """Whether clients send Fisher information: it is their own, and the server reads it."""
        read = self.global_weight == "fisher" or self.personal in ("soft", "hard")
        return read and self.fisher == "client"


class SCFSGLTable(Table):
    """SC-FSGL."""

    fuse: Literal["cluster", "mean"] = key(
        "cluster", "rows of the codebooks are clustered, weighted by their matches, or averaged"
    )
    share: Literal["weights", "codebook"] = key(
        "weights",
        "what crosses beside the codebook: weights, of whose mean each client takes as much as its "
        "validation windows approve of, or nothing (paper)",
    )


class Strategy(Table):
    """The federated algorithm, its cohort, and the parameters of each algorithm."""

    name: Annotated[str, AfterValidator(_strategy)] = key(
        "feddbp", f"the federated algorithm: {', '.join(STRATEGIES)}"
    )
    fraction: float = key(1.0, "share of the clients drawn for every round", gt=0, le=1)
    personal_weights: Annotated[str, AfterValidator(listed)] = key(
        "",
        "weights that stay on their node where weights are averaged, e.g. 'encoder.policy'",
    )
    fedavgm: FedAvgMTable = FedAvgMTable()
    fedadam: FedAdamTable = FedAdamTable()
    fedprox: FedProxTable = FedProxTable()
    fedproto: FedProtoTable = FedProtoTable()
    fedtgp: FedTGPTable = FedTGPTable()
    feddbp: FedDBPTable = FedDBPTable()
    scfsgl: SCFSGLTable = SCFSGLTable()
    robust: RobustTable = RobustTable()

    @property
    def personal_names(self) -> list[str]:
        """What :attr:`personal_weights` lists, where the strategy averages weights."""
        averages = self.name in AVERAGING_STRATEGIES
        return [name for name in self.personal_weights.split(", ") if name] if averages else []


class Simulation(Table):
    """Which carrier moves the messages, and what one client may use."""

    engine: Literal["local", "ray", "flower"] = key(
        "ray", "in this process, on Ray actors, or under Flower's own engine"
    )
    actors: int = key(0, "worker processes; 0 = as many as fit", ge=0)
    cpus_per_client: int = key(1, "CPUs (and torch threads) of a client", ge=1)
    gpus_per_client: float = key(0.0, "share of a GPU for a client; 0 = CPU", ge=0)
    client_timeout: float = key(
        0.0,
        "ray: seconds after which a client's process counts as hung and is replaced, at the cost "
        "of that client's reply alone; 0 = wait until run.timeout, at the cost of its process's",
        ge=0,
    )
    address: str = key("", "address of an existing Ray cluster; empty = start one")
    batch_clients: int = key(
        0,
        "small clients that train as one batch, for perceptrons without dropout; results differ "
        "from those of single clients by rounding; 0 = each alone",
        ge=0,
    )
