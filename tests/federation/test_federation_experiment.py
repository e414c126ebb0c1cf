"""A wrong experiment file gives one clear line: the key's path, what is wrong, what is near."""

import math
import tomllib
from pathlib import Path

import pytest

from federation.experiment import Experiment, describe_keys, known_keys, load_experiment
from federation.learners.graphs import client_graphs
from federation.strategies import ALGORITHMS
from federation.strategies.fedproto import FedProtoExchange
from federation.tables import (
    AVERAGING_STRATEGIES,
    PROTOTYPE_STRATEGIES,
    STRATEGIES,
    WEIGHT_STRATEGIES,
)
from graphcl.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]


def complaint(path, text: str) -> str:
    """Load an experiment file; return its one complaint, without the file's name."""
    file = path / "experiment.toml"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_experiment(file)
    head, *lines = str(caught.value).splitlines()
    assert head == f"{file} cannot run:"
    assert len(lines) == 1, lines
    return lines[0].strip()


@pytest.mark.parametrize(
    ("text", "key", "near"),
    [
        ("[run]\nround = 3", "run.round", "run.rounds"),
        ("[train]\nlearning_rat = 0.1", "train.learning_rat", "train.learning_rate"),
        ("[strategy.feddbp]\ntemprature = 1", "strategy.feddbp.temprature", "temperature"),
        ("learning_rate = 0.1", "learning_rate", "train.learning_rate"),
        ("seed = 3", "seed", "run.seed"),
        ("[partitions]\nclients = 3", "partitions", "partition"),
        ("[strategy.fedprx]\nmu = 1", "strategy.fedprx", "strategy.fedprox"),
        ("[csbm]\nnodes = 3", "csbm", "data.csbm"),
    ],
)
def test_unknown_key_or_table_names_the_nearest(tmp_path, text, key, near):
    line = complaint(tmp_path, text)
    assert line.startswith(f"{key}: unknown key; did you mean '")
    assert near in line


def test_unknown_table_like_no_other_lists_the_tables(tmp_path):
    line = complaint(tmp_path, "[zzz]\nq = 1")
    assert line.startswith("zzz: unknown key; the tables are asynchrony, data, data.csbm")


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("[run]\nrounds = 'many'", "run.rounds"),
        ("[run]\nrounds = 2.5", "run.rounds"),
        ("[run]\nrounds = [2]", "run.rounds"),
        ("[run]\nrounds = true", "run.rounds"),
        ("[run]\nname = 3", "run.name"),
        ("[train]\nlearning_rate = 'fast'", "train.learning_rate"),
        ("[model]\nencoders = ['gcn', 'sage']", "model.encoders"),
        ("[strategy]\nname = 'fedsgd'", "strategy.name"),
    ],
)
def test_wrong_type_names_the_key_and_the_value(tmp_path, text, key):
    line = complaint(tmp_path, text)
    assert line.startswith(f"{key}: ")
    value = tomllib.loads(text)[key.split(".")[0]][key.split(".")[1]]
    assert repr(value) in line


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("[run]\nrounds = 0", "run.rounds"),
        ("[run]\nseed = -1", "run.seed"),
        ("[run]\nmin_success = 1.5", "run.min_success"),
        ("[run]\nname = 'a/b'", "run.name"),
        ("[data]\nsource = ''", "data.source"),
        ("[data]\ntrain_ratio = 0.0", "data.train_ratio"),
        ("[model]\ndropout = 1.0", "model.dropout"),
        ("[strategy]\nfraction = 0.0", "strategy.fraction"),
        ("[strategy.feddbp]\ntemperature = 0.0", "strategy.feddbp.temperature"),
        ("[simulation]\ncpus_per_client = 0", "simulation.cpus_per_client"),
    ],
)
def test_value_out_of_range_names_the_key(tmp_path, text, key):
    assert complaint(tmp_path, text).startswith(f"{key}: ")


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("key", [k for k, default, _ in describe_keys() if type(default) is float])
def test_numbers_must_be_finite(key, value):
    """TOML can write nan and inf; neither is a rate, a share or a weight."""
    with pytest.raises(ConfigError, match=key.replace(".", r"\.")):
        Experiment.from_flat({key: value})


def test_every_problem_has_its_line():
    with pytest.raises(ConfigError) as caught:
        Experiment.from_flat({"run.rounds": 0, "run.sed": 1, "model.dropout": 2.0})
    lines = str(caught.value).splitlines()[1:]
    keys = [line.split(":")[0].strip() for line in lines]
    assert sorted(keys) == ["model.dropout", "run.rounds", "run.sed"]


def test_ratios_must_leave_test_nodes(tmp_path):
    line = complaint(tmp_path, "[data]\ntrain_ratio = 0.5\nval_ratio = 0.5")
    assert line.startswith("data")
    assert "leaves no test nodes" in line


@pytest.mark.parametrize("text", ["data = 3", "run = 'fast'", "[data]\ncsbm = 3"])
def test_value_where_a_table_is_expected_speaks_of_a_table(tmp_path, text):
    key = "data.csbm" if "csbm" in text else text.split(" ")[0]
    line = complaint(tmp_path, text)
    assert line.startswith(f"{key}: ")
    assert "table" in line
    assert "dictionary" not in line  # the file has tables; dictionaries are the program's


@pytest.mark.parametrize("overrides", [{"run.seed.x": 1}, {"run.seed": 1, "run.seed.x": 2}])
def test_dotted_key_below_a_value_is_refused(tmp_path, overrides):
    file = tmp_path / "experiment.toml"
    file.write_text("[run]\nseed = 3")
    with pytest.raises(ConfigError, match=r"run\.seed\.x: 'seed' is a value, not a table"):
        load_experiment(file, overrides)
    with pytest.raises(ConfigError, match=r"run\.seed\.x: 'seed' is a value, not a table"):
        Experiment.from_flat({"run.seed": 3} | overrides)


@pytest.mark.parametrize("name", WEIGHT_STRATEGIES)
def test_unlike_models_cannot_be_averaged(tmp_path, name):
    line = complaint(tmp_path, f"[model]\nencoders='gcn, gat'\n[strategy]\nname='{name}'")
    assert line.startswith(f"strategy.name: '{name}' has one model for all")
    assert "model.encoders" in line
    assert "fedproto" in line
    same = {"model.encoders": "gcn, gcn", "strategy.name": name}
    assert Experiment.from_flat(same).model.encoder_names == ["gcn", "gcn"]


def test_odd_width_cannot_be_halved(tmp_path):
    concat = "[strategy.feddbp]\nfuse = 'concat'\n"
    line = complaint(tmp_path, concat + "[model]\nembedding_channels = 7")
    assert line.startswith("model.embedding_channels: 7 cannot be halved")
    allowed = {"model.embedding_channels": 7, "strategy.feddbp.fuse": "sum"}
    assert Experiment.from_flat(allowed).model.embedding_channels == 7


@pytest.mark.parametrize("name", ["local", "fedavg", "fedprox", "fedproto"])
def test_odd_width_is_fine_where_no_branch_is_cut(name):
    keys = {"strategy.name": name, "strategy.feddbp.fuse": "concat"}
    experiment = Experiment.from_flat({"model.embedding_channels": 7, **keys})
    assert experiment.model.embedding_channels == 7


def test_odd_width_is_refused_for_a_comparison_with_feddbp():
    keys = {"strategy.name": "local", "run.compare": "feddbp", "model.embedding_channels": 7}
    keys["strategy.feddbp.fuse"] = "concat"
    with pytest.raises(ConfigError, match=r"model\.embedding_channels: 7 cannot be halved"):
        Experiment.from_flat(keys)


CSBM = "[data]\nsource = 'csbm'\n"


@pytest.mark.parametrize(
    ("text", "start"),
    [
        (CSBM + "[data.csbm]\nnodes = 4", "data.csbm.classes: 5 classes do not fit 4 nodes"),
        (CSBM + "num_classes = 4", "data.num_classes: 4 was promised, but data.csbm.classes"),
        (
            CSBM + "[partition]\nclients = 101",
            "partition.clients: 101 clients of at least 10 nodes need more than the 1000 nodes",
        ),
    ],
)
def test_generator_that_cannot_serve_the_federation(tmp_path, text, start):
    assert complaint(tmp_path, text).startswith(start)


def test_promises_are_checked_against_real_data():
    keys = {"data.source": "digits", "data.digits.neighbors": 2, "partition.clients": 2}
    with pytest.raises(ConfigError, match=r"data\.num_classes: 7 was promised.*holds 10 classes"):
        client_graphs(Experiment.from_flat(keys | {"data.num_classes": 7}))
    assert client_graphs(Experiment.from_flat(keys | {"data.num_classes": 10})).num_classes == 10
    crowded = keys | {"partition.clients": 200}
    with pytest.raises(ConfigError, match=r"partition\.clients: 200 .*1797 nodes of digits"):
        client_graphs(Experiment.from_flat(crowded))


def test_natural_partition_of_one_graph_is_refused():
    keys = {"data.source": "csbm", "partition.scheme": "natural"}
    with pytest.raises(ConfigError, match=r"partition\.scheme: 'natural' takes one graph"):
        client_graphs(Experiment.from_flat(keys))


OUTAGES = {
    "task.name": "outages",
    "data.source": "storms",
    "partition.scheme": "natural",
    "strategy.name": "fedavg",
}
NEWCOMER = {"data.outages.newcomer": "west", "data.outages.newcomer_events": "one"}


SHOPS = {"task.name": "recommend", "data.source": "shoppers", "partition.scheme": "users"}


@pytest.mark.parametrize("task", [{"task.name": "pretrain"}, SHOPS])
def test_fedper_needs_last_layers_to_leave_at_home(task):
    for keys in ({"strategy.name": "fedper"}, {"run.compare": "local, fedper"}):
        with pytest.raises(ConfigError, match="'fedper' leaves the last layers on their node, and"):
            Experiment.from_flat(task | keys)


@pytest.mark.parametrize("task", [{"task.name": "pretrain"}, SHOPS])
def test_lgfedavg_needs_last_layers_to_average(task):
    for keys in ({"strategy.name": "lgfedavg"}, {"run.compare": "local, lgfedavg"}):
        with pytest.raises(ConfigError, match="'lgfedavg' averages the last layers, and"):
            Experiment.from_flat(task | keys)


FILES = {"data.source": "a.npz, b.csv.gz", "partition.scheme": "natural", "partition.clients": 2}


@pytest.mark.parametrize(
    ("keys", "start"),
    [
        ({"partition.scheme": "louvain"}, "partition.scheme: 'louvain' divides a graph, but"),
        ({"data.source": "digits"}, "data.source: 'digits' holds no interactions; use 'shoppers'"),
        ({"data.source": "a.npz, b.toml"}, "data.source: 'b.toml' holds no interactions"),
        ({"partition.scheme": "natural"}, "partition.scheme: 'natural' takes one platform per cl"),
        (FILES | {"partition.clients": 3}, "partition.clients is 3, but data.source lists 2 plat"),
        (FILES | {"partition.scheme": "users"}, "partition.scheme: 'users' deals out the users of"),
        (FILES | {"data.interactions.catalogue": 0.5}, "data.interactions.catalogue: 0.5 of one"),
        (
            FILES | {"data.interactions.item_tables": "i.csv"},
            "data.interactions.item_tables: 'i.cs",
        ),
        (
            {"data.interactions.users": 7},
            "partition.clients: 10 clients need a user each, but data",
        ),
        ({"data.interactions.catalogue": 0.0}, "data.interactions.catalogue: "),
        ({"data.interactions.names": "user"}, "data.interactions.names: write pairs such as"),
        ({"recommend.method": "sasrek"}, "recommend.method: unknown recommender 'sasrek', did you"),
        ({"recommend.method": ""}, "recommend.method: name one recommender"),
        ({"model.embedding_channels": 7}, "model.embedding_channels: 7 cannot be shared out over"),
        ({"strategy.name": "scfsgl"}, "strategy.name: 'scfsgl' is about forecasts"),
        (
            {"simulation.gpus_per_client": 0.5},
            "simulation.gpus_per_client: task.name = 'recommend'",
        ),
        (
            {"task.name": "classify"},
            "partition.scheme: 'users' deals out the users of interactions",
        ),
    ],
)
def test_a_federation_of_shops_that_cannot_be_names_the_key(keys, start):
    with pytest.raises(ConfigError) as caught:
        Experiment.from_flat(SHOPS | keys)
    _, line = str(caught.value).splitlines()
    assert line.strip().startswith(start)


@pytest.mark.parametrize(
    ("keys", "start"),
    [
        ({"partition.scheme": "louvain"}, "partition.scheme: task.name = 'outages' has one"),
        ({"data.source": "digits"}, "data.source: 'digits' holds no outages"),
        ({"data.source": "csbm"}, "data.source: 'csbm' holds no outages"),
        ({"data.source": "pyg:Planetoid/Cora"}, "data.source: 'pyg:Planetoid/Cora' holds no"),
        ({"strategy.name": "pooled", **NEWCOMER}, "data.outages.newcomer: pooled training has all"),
        ({"run.compare": "pooled", **NEWCOMER}, "data.outages.newcomer: pooled training has all"),
        ({"data.outages.newcomer": "west"}, "data.outages: newcomer and newcomer_events go"),
        ({"data.outages.newcomer_events": "one"}, "data.outages: newcomer and newcomer_events go"),
        ({"data.outages.columns": "event"}, "data.outages.columns: write pairs such as"),
        ({"data.outages.units": "gust=m/s, rain="}, "data.outages.units: write pairs such as"),
        ({"outages.dropout": 1.0}, "outages.dropout: "),
        ({"outages.total_weight": -1.0}, "outages.total_weight: "),
        ({"outages.contrast_weight": -1.0}, "outages.contrast_weight: "),
        ({"simulation.gpus_per_client": 0.5}, "simulation.gpus_per_client: task.name = 'outages'"),
    ],
)
def test_a_federation_of_outages_that_cannot_be_names_the_key(keys, start):
    with pytest.raises(ConfigError) as caught:
        Experiment.from_flat(OUTAGES | keys)
    _, line = str(caught.value).splitlines()
    assert line.strip().startswith(start)


def test_a_newcomer_is_compared_with_all_but_pooled_training():
    keys = OUTAGES | NEWCOMER | {"run.compare": "local, fedprox, fedproto, feddbp"}
    experiment = Experiment.from_flat(keys)
    assert experiment.data.outages.newcomer == "west"
    assert experiment.encoder_names == ["sa_hgnn"]


def test_pairs_are_read_by_name_whatever_the_space_around_them():
    keys = {
        "data.outages.columns": "\nevent = storm,\n customers=static:meters,",
        "data.outages.units": "gust=m/s, strength=1e-4 m/s/km2",
    }
    table = Experiment.from_flat(keys).data.outages
    assert table.column_names == {"event": "storm", "customers": "static:meters"}
    assert table.feature_units == {"gust": "m/s", "strength": "1e-4 m/s/km2"}
    assert Experiment().data.outages.column_names == {}


@pytest.mark.parametrize(
    ("text", "key", "near"),
    [
        ("[model]\nencoders = 'gcn, sege'", "model.encoders", "'sege', did you mean 'sage'?"),
        ("[run]\ncompare = 'local, fedpro'", "run.compare", "'fedpro', did you mean 'fed"),
        ("[model]\nencoders = ' , '", "model.encoders", "name at least one encoder"),
        ("[model]\nencoders = ''", "model.encoders", "name at least one encoder"),
    ],
)
def test_lists_of_names_check_every_name(tmp_path, text, key, near):
    line = complaint(tmp_path, text)
    assert line.startswith(f"{key}: ")
    assert near in line


def test_lists_of_names_have_one_form():
    experiment = Experiment.from_flat(
        {"model.encoders": "gcn,sage ,, gat", "run.compare": " local"}
    )
    assert experiment.model.encoders == "gcn, sage, gat"
    assert experiment.model.encoder_names == ["gcn", "sage", "gat"]
    assert experiment.run.compare == "local"


def test_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"absent\.toml: no such experiment file"):
        load_experiment(tmp_path / "absent.toml")


def test_folder_in_place_of_a_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=tmp_path.name):
        load_experiment(tmp_path)


@pytest.mark.parametrize("content", [b"rounds: 3\n", b"[run\n", b"\xff\xfe\x00"])
def test_file_that_is_no_toml_is_named(tmp_path, content):
    file = tmp_path / "other.toml"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=r"other\.toml: not a TOML file: "):
        load_experiment(file)


def test_overrides_win_over_the_file(tmp_path):
    file = tmp_path / "experiment.toml"
    file.write_text("[run]\nrounds = 3\nseed = 4\n")
    experiment = load_experiment(file, {"run.rounds": 9, "strategy.feddbp.keep": 1.0})
    assert (experiment.run.rounds, experiment.run.seed) == (9, 4)
    assert experiment.strategy.feddbp.keep == 1.0


def unlike_defaults() -> dict:
    """A valid value other than the default for every key."""
    changed = {}
    for key, default, _ in describe_keys():
        if isinstance(default, int):
            changed[key] = default + 2
        elif isinstance(default, float):
            changed[key] = default / 2 or 0.25
    return changed | {
        "run.name": "other-name_1.0",
        "run.compare": "local, fedproto",
        "run.directory": 'some/where "quoted" ü',
        "data.source": "pyg:Planetoid/Cora",
        "data.root": "/r",
        "partition.scheme": "louvain",
        "model.encoders": "sage, gin",
        "train.optimizer": "sgd",
        "strategy.name": "fedproto",
        "strategy.fedproto.global_weight": "uniform",
        "strategy.fedproto.inference": "prototype",
        "strategy.fedtgp.margin": "paper",
        "strategy.fedtgp.inference": "head",
        "strategy.feddbp.fuse": "concat",
        "strategy.feddbp.global_weight": "count",
        "strategy.feddbp.fisher": "server",
        "strategy.feddbp.fisher_bits": 1,
        "strategy.feddbp.personal": "off",
        "strategy.feddbp.inference": "head",
        "simulation.engine": "local",
        "simulation.address": "auto",
        "data.num_classes": 7,
        "data.split": "stored",
        "task.name": "pretrain",
        "simulation.gpus_per_client": 0.0,
        "simulation.batch_clients": 0,
        "pretrain.method": "grace",
        "pretrain.aspect.policy": "global",
        "pretrain.aspect.fusion": "concat",
        "strategy.personal_weights": "encoder.policy, head",
        "strategy.scfsgl.fuse": "mean",
        "strategy.scfsgl.share": "codebook",
        "strategy.robust.rule": "median",
        "faults.attack": "backdoor",
        "asynchrony.buffer": 0,
        "asynchrony.concurrency": 0,
        "forecast.separation": "off",
        "data.outages.columns": "event=storm, district=city",
        "data.outages.units": "gust=m/s",
        "data.outages.val_events": "one, two",
        "data.outages.test_events": "three",
        "data.outages.newcomer": "west",
        "data.outages.newcomer_events": "four",
        "data.interactions.duplicates": "drop",
        "privacy.noise": "seed",
        "privacy.masking": False,
        "outages.target": "raw",
        "outages.exposure": "none",
        "outages.static_graph": "borders",
        "outages.branch": "static",
        "recommend.method": "gru4rec",
        "data.interactions.names": "user=user_id, item=item_id",
        "data.interactions.item_tables": "films.csv, books.csv",
        "data.interactions.category_separator": " ",
        "data.interactions.categories": "a, b",
        "data.images.classes": "cat, dog",
    }


def test_every_key_survives_flat_and_toml(tmp_path):
    changed = unlike_defaults()
    experiment = Experiment.from_flat(changed)
    flat = experiment.flat()
    assert set(flat) == set(known_keys())
    assert flat == changed
    kept = {key for key, default, _ in describe_keys() if flat[key] == default}
    # Pre-training has the CPU only, and neither masks nor buffers go with cohorts and faults.
    buffered = {"asynchrony.buffer", "asynchrony.concurrency"}
    alone = {"simulation.gpus_per_client", "simulation.batch_clients"}
    assert kept == alone | {"privacy.masking"} | buffered
    assert all(isinstance(value, bool | int | float | str) for value in flat.values())
    assert Experiment.from_flat(flat) == experiment
    file = tmp_path / "again.toml"
    file.write_text(experiment.to_toml(), encoding="utf-8")
    assert load_experiment(file) == experiment


def test_experiments_are_equal_and_hash_alike_by_their_keys():
    one, other = Experiment.from_flat(unlike_defaults()), Experiment.from_flat(unlike_defaults())
    assert one == other
    assert hash(one) == hash(other)
    assert one != Experiment()
    with pytest.raises(ValueError, match="frozen"):
        one.run.seed = 3


def test_override_changes_the_named_keys_and_nothing_else():
    experiment = Experiment.from_flat(unlike_defaults())
    changed = {"strategy.name": "feddbp", "run.compare": "", "strategy.feddbp.fisher": "client"}
    assert experiment.override(changed).flat() == experiment.flat() | changed
    assert experiment.override({}) == experiment
    with pytest.raises(ConfigError, match=r"run\.sed: unknown key"):
        experiment.override({"run.sed": 3})


@pytest.mark.parametrize("file", sorted((ROOT / "configs").glob("*.toml")), ids=lambda f: f.name)
def test_shipped_experiments_validate(file):
    experiment = load_experiment(file)
    for name in filter(None, experiment.run.compare.split(", ")):
        if name not in WEIGHT_STRATEGIES or not experiment.unlike_models:
            assert experiment.override({"strategy.name": name}).strategy.name == name


def test_experiments_are_shipped():
    assert len(list((ROOT / "configs").glob("*.toml"))) >= 3


def test_every_key_has_a_meaning_and_a_valid_default():
    described = {key: (default, meaning) for key, default, meaning in describe_keys()}
    assert [key for key, (_, meaning) in described.items() if len(meaning.split()) < 2] == []
    defaults = {key: default for key, (default, _) in described.items()}
    assert Experiment.from_flat(defaults) == Experiment()
    assert Experiment().flat() == defaults


def test_flower_knows_every_key_with_the_same_default():
    """Flower refuses to override a key that the project file does not hold."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert Experiment.from_nested(project["tool"]["flwr"]["app"]["config"]) == Experiment()

    def flatten(table, prefix=""):
        for key, value in table.items():
            if isinstance(value, dict):
                yield from flatten(value, f"{prefix}{key}.")
            else:
                yield prefix + key

    assert set(flatten(project["tool"]["flwr"]["app"]["config"])) == set(known_keys())


def test_strategies_of_the_schema_are_those_that_exist():
    assert tuple(ALGORITHMS) == STRATEGIES
    personal = {name for name, algorithm in ALGORITHMS.items() if algorithm.exchange.personal}
    weights = {*AVERAGING_STRATEGIES, "lgfedavg"}
    assert personal == set(STRATEGIES) - weights
    supervised = {n for n, a in ALGORITHMS.items() if issubclass(a.exchange, FedProtoExchange)}
    assert supervised == set(PROTOTYPE_STRATEGIES)
    one_model = {n for n, a in ALGORITHMS.items() if a.sends == ("arrays",)}
    assert one_model == {*WEIGHT_STRATEGIES, "lgfedavg"}
