"""Images in a federation: whose they are, what a domain is, what trains, and that it learns."""

import pytest
import torch

from federation.experiment import Experiment
from federation.learners import ImageLearner, clients_of
from federation.learners import images as learner_module
from federation.learners.albums import album_of, albums
from federation.learners.images import Shuffled
from federation.records import to_tensors
from graphcl.datasets import ImageSet, load_images, save_images
from graphcl.errors import ConfigError, DataError, PartitionError
from graphcl.images import IMAGE_ENCODERS
from graphcl.prototypes import DualBranchProjector
from graphcl.training import seed_everything
from simulations.carriers.local import LocalGrid

IMAGES = {
    "task.name": "images",
    "partition.scheme": "practical",
    "partition.alpha": 1.0,
    "data.train_ratio": 0.6,
    "data.val_ratio": 0.15,
    "model.encoders": "cnn",
    "model.hidden_channels": 2,
    "images.batch_size": 16,
}


def some_digits(count: int, name: str = "some", size: int | None = None) -> ImageSet:
    whole = load_images("digits", size=size)
    return ImageSet(name, whole.x[:count], whole.y[:count], whole.class_names)


@pytest.fixture
def images(tiny, tmp_path):
    """Build a tiny experiment on 150 digits, as ``tiny`` does."""
    path = tmp_path / "digits.npz"
    save_images(some_digits(150), path)
    return lambda strategy="fedavg", directory="", **keys: tiny(
        strategy, directory, **{"data.source": str(path), **IMAGES, **keys}
    )


def split_rows(album) -> dict[str, list[int]]:
    return {split: album.rows[mask].tolist() for split, mask in album.masks.items()}


@pytest.mark.parametrize("scheme", ["dirichlet", "practical", "pathological"])
def test_every_image_is_one_clients_and_trains_validates_or_tests(images, scheme):
    found = albums(images(**{"partition.scheme": scheme, "partition.classes": 5}))
    parts = [split_rows(album) for album in found.albums]
    assert sorted(row for part in parts for rows in part.values() for row in rows) == [*range(150)]
    for part, share in zip(parts, found.report.clients, strict=True):
        size = share.nodes
        assert size == sum(map(len, part.values())) >= 5
        assert len(part["train"]) == pytest.approx(0.6 * size, abs=6)
        assert len(part["test"]) == pytest.approx(0.25 * size, abs=6)
        held = found.whole.y[[row for rows in part.values() for row in rows]]
        assert share.class_counts == tuple(held.bincount(minlength=10).tolist())
        if scheme == "pathological":
            assert len(held.unique()) == 5
    assert found.report.edges == 0


def test_the_parts_follow_from_the_seed(images):
    one, again, other = (albums(images(**{"run.seed": seed})) for seed in (1, 1, 2))
    assert [split_rows(a) for a in one.albums] == [split_rows(a) for a in again.albums]
    assert [split_rows(a) for a in one.albums] != [split_rows(a) for a in other.albums]


@pytest.mark.parametrize("clients", [4, 5])
def test_sources_are_domains_with_clients_of_their_own(images, tmp_path, clients):
    sets = some_digits(90, "small"), some_digits(120, "large", size=12)
    for one in sets:
        save_images(one, tmp_path / f"{one.name}.npz")
    keys = {
        "data.source": f"{tmp_path}/small.npz, {tmp_path}/large.npz",
        "data.images.size": 10,
        "partition.clients": clients,
    }
    found = albums(images(**keys))
    assert found.whole.x.shape == (210, 1, 10, 10)
    assert found.whole.x.equal(torch.cat([one.resized(10).x for one in sets]))
    domains = [set((album.rows >= 90).tolist()) for album in found.albums]
    first = -(-clients // 2)  # the odd one goes to the first
    assert domains == [{False}] * first + [{True}] * (clients - first)
    assert sum(len(album.rows) for album in found.albums) == 210
    with pytest.raises(DataError, match=r"large\.npz: an image is \[1, 12, 12\] as \[C, H, W\]"):
        albums(images(**keys | {"data.images.size": 0}))
    colour = ImageSet("large", sets[1].x, sets[1].y % 3, ("a", "b", "c"))
    save_images(colour, tmp_path / "large.npz")
    with pytest.raises(DataError, match=r"large\.npz: the classes are a, b, c, but those of"):
        albums(images(**keys | {"run.seed": 1}))


def test_as_they_come_each_source_is_a_client(images, tmp_path):
    sets = some_digits(90, "small"), some_digits(120, "large")
    for one in sets:
        save_images(one, tmp_path / f"{one.name}.npz")
    keys = {
        "data.source": f"{tmp_path}/small.npz, {tmp_path}/large.npz",
        "partition.scheme": "natural",
        "partition.clients": 2,
    }
    found = albums(images(**keys))
    for album, source in zip(found.albums, sets, strict=True):
        assert album.images.x[album.rows].equal(source.x)
        assert album.images.y[album.rows].equal(source.y)
    assert [share.nodes for share in found.report.clients] == [90, 120]


def test_promises_are_checked_against_the_images(images):
    with pytest.raises(ConfigError, match=r"data\.num_classes: 7 was promised.*holds 10 classes"):
        albums(images(**{"data.num_classes": 7}))
    with pytest.raises(ConfigError, match=r"partition\.clients: 50 .*than the 150 images of"):
        albums(images(**{"partition.clients": 50}))
    with pytest.raises(PartitionError, match="classes is 11, must be 4 to 10"):
        albums(images(**{"partition.scheme": "pathological", "partition.classes": 11}))


@pytest.mark.parametrize(
    ("keys", "start"),
    [
        ({"model.encoders": "cnn, gcn"}, "model.encoders: 'gcn' embeds no images, as task.name ="),
        ({"model.encoders": "vit"}, "model.encoders: unknown encoder 'vit' (known: gcn"),
        ({"task.name": "classify"}, "model.encoders: 'cnn' embeds no nodes, as task.name = 'cl"),
        ({"partition.scheme": "louvain"}, "partition.scheme: 'louvain' divides no images; choose"),
        ({"partition.scheme": "natural"}, "data.source: 1 names for partition.clients = 3 clients"),
        ({"data.source": "a.npz, b, a.npz"}, "data.source: 'a.npz' is there twice; name it once"),
        ({"partition.scheme": "users"}, "partition.scheme: 'users' deals out the users of"),
        ({"data.source": "csbm"}, "data.source: 'csbm' holds no images; use 'digits'"),
        ({"data.source": "a.npz, pyg:Planetoid/Cora"}, "data.source: 'pyg:Planetoid/Cora' holds"),
        ({"data.source": "a, b, c, d"}, "partition.clients: 3 clients are fewer than the 4 sour"),
        ({"data.images.size": -1}, "data.images.size: "),
        ({"images.batch_size": 0}, "images.batch_size: "),
        ({"partition.classes": 0}, "partition.classes: "),
        ({"strategy.name": "scfsgl"}, "strategy.name: 'scfsgl' is about forecasts"),
        ({"model.encoders": "cnn, resnet4"}, "strategy.name: 'fedavg' has one model for all"),
    ],
)
def test_a_federation_of_images_that_cannot_be_names_the_key(keys, start):
    base = {**IMAGES, "partition.clients": 3, "strategy.name": "fedavg"}
    with pytest.raises(ConfigError) as caught:
        Experiment.from_flat(base | keys)
    _, line = str(caught.value).splitlines()
    assert line.strip().startswith(start)
    if "unknown" in start:
        assert all(name in line for name in IMAGE_ENCODERS)


@pytest.mark.parametrize("scheme", ["practical", "pathological"])
def test_graphs_can_be_divided_by_the_same_skews(tiny, scheme):
    report = clients_of(tiny(**{"partition.scheme": scheme})).report
    held = [sum(count > 0 for count in client.class_counts) for client in report.clients]
    assert sum(client.nodes for client in report.clients) == 60
    assert scheme == "practical" or held == [2, 2, 2]


def test_pooled_training_has_all_training_images_and_no_others(images):
    experiment = images("pooled")
    own = [split_rows(album) for album in albums(experiment).albums]
    for client, parts in enumerate(own):
        pooled = split_rows(album_of(experiment, client))
        assert sorted(pooled["train"]) == sorted(row for part in own for row in part["train"])
        assert pooled["val"] == parts["val"]
        assert pooled["test"] == parts["test"]


def test_clients_share_the_images_as_bytes(images):
    experiment = images("local")
    one, other = ImageLearner(experiment, 0), ImageLearner(experiment, 1)
    assert one.images is other.images
    assert one.images.x.dtype == torch.uint8


def test_batches_hold_every_image_once_in_an_order_from_the_rounds_own_stream():
    rows = torch.arange(100, 123)
    batches = Shuffled(rows, 5)
    seed_everything(0, "fit", 1, 0)
    first, second = list(batches), list(batches)
    for epoch in (first, second):
        assert [len(batch) for batch in epoch] == [5, 5, 5, 5, 3]
        assert sorted(torch.cat(epoch).tolist()) == rows.tolist()
    assert not torch.cat(first).equal(torch.cat(second))
    seed_everything(0, "fit", 1, 0)
    assert torch.cat(list(batches)).equal(torch.cat(first))
    seed_everything(0, "fit", 2, 0)
    assert not torch.cat(list(batches)).equal(torch.cat(first))


def test_a_step_descends_the_cross_entropy_of_its_batch_alone(images):
    """One client, one epoch, one batch: a plain gradient step on all training images."""
    keys = {"train.optimizer": "sgd", "train.weight_decay": 0.0, "images.batch_size": 1000}
    learner = ImageLearner(images("local", **keys), 0)
    twin = ImageLearner(images("local", **keys), 0)
    rows = learner.rows["train"]
    x = learner.images.x[rows].float() / 127.5 - 1
    loss = torch.nn.functional.cross_entropy(twin.model(x).logits, learner.images.y[rows])
    loss.backward()
    terms = learner.fit(lambda out: {})
    assert terms["loss"] == pytest.approx(loss.item(), rel=1e-5)
    rate = learner.config.train.learning_rate
    for ours, theirs in zip(learner.model.parameters(), twin.model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs - rate * theirs.grad, rtol=1e-4, atol=1e-6)


def test_evaluation_in_blocks_is_that_of_all_at_once(images, monkeypatch):
    learner = ImageLearner(images("local"), 0)
    whole = learner.outputs("train", "test")
    monkeypatch.setattr(learner_module, "_BLOCK", 7)
    for split, out in learner.outputs("train", "test").items():
        assert len(out.y) == len(learner.rows[split]) > 7
        for ours, theirs in zip(out, whole[split], strict=True):
            torch.testing.assert_close(ours, theirs)
    assert learner.features().embedding.equal(learner.outputs("train")["train"].embedding)


@pytest.mark.parametrize("strategy", ["local", "fedproto", "feddbp"])
def test_a_client_without_images_to_test_on_has_finite_scores(
    images, summary_of, tmp_path, strategy
):
    keys = {"data.train_ratio": 0.98, "data.val_ratio": 0.01, "partition.min_nodes": 1}
    experiment = images(strategy, tmp_path / "run", **keys)
    assert not any(album.masks["test"].any() for album in albums(experiment).albums)
    LocalGrid(experiment).serve()
    assert summary_of(tmp_path / "run")["rounds"] == 2


def test_the_first_weights_are_those_of_the_client_whatever_the_algorithm(images):
    """Floors below 0.569 and 0.844 when written; chance is 0.1."""
    unlike = {"model.encoders": "cnn, resnet4"}
    plain = ImageLearner(images("local", **unlike), 1).model.state_dict()
    dual = ImageLearner(images("feddbp", **unlike), 1, DualBranchProjector).model.state_dict()
    assert set(plain) < set(dual)
    assert all(dual[name].equal(weight) for name, weight in plain.items())
    kinds = [ImageLearner(images("local", **unlike), client).model for client in range(3)]
    names = [set(model.state_dict()) for model in kinds]
    assert names[0] == names[2] != names[1]


@pytest.mark.parametrize("strategy", ["local", "fedavg", "fedprox", "fedper", "pooled"])
def test_strategies_of_one_model_run(images, summary_of, tmp_path, strategy):
    experiment = images(strategy, tmp_path / "run", **{"model.encoders": "mobilenet"})
    LocalGrid(experiment).serve()
    assert 0 <= summary_of(tmp_path / "run")["test_accuracy"] <= 1


def test_the_head_stays_at_home_under_fedper(images, staged, tmp_path):
    grid = staged(images("fedper", tmp_path / "run"))
    grid.serve()
    sent = to_tensors(grid.replies["train", 2, 0].content["arrays"])
    assert sent
    assert all(name.startswith("encoder.") for name in sent)


@pytest.mark.parametrize("strategy", ["fedproto", "feddbp"])
def test_prototypes_cross_between_unlike_networks(images, staged, tmp_path, strategy):
    keys = {"model.encoders": "cnn, resnet4, googlenet", "model.embedding_channels": 6}
    grid = staged(images(strategy, tmp_path / "run", **keys))
    grid.serve()
    for client in range(3):
        reply = to_tensors(grid.replies["train", 2, client].content["prototypes"])
        assert reply["values"].shape == (len(reply["classes"]), 6)


@pytest.mark.parametrize("strategy", ["feddbp", "fedavg"])
def test_a_killed_run_resumes_to_the_same_figures(
    images, tmp_path, killed_and_resumed, summary_of, strategy
):
    keys = {"run.rounds": 3}
    LocalGrid(images(strategy, tmp_path / "whole", **keys)).serve()
    killed_and_resumed(images(strategy, tmp_path / "killed", **keys), 2)
    assert summary_of(tmp_path / "killed")["digest"] == summary_of(tmp_path / "whole")["digest"]


@pytest.mark.parametrize(("strategy", "floor"), [("feddbp", 0.45), ("fedavg", 0.75)])
def test_digits_are_learned_together(tiny, summary_of, tmp_path, strategy, floor):
    """Floors below 0.569 and 0.844 when written; chance is 0.1."""
    unlike = {"model.encoders": "cnn, resnet6, googlenet"} if strategy == "feddbp" else {}
    learning = {"train.learning_rate": 0.005, "train.weight_decay": 0.0, "run.rounds": 5}
    better = {"strategy.feddbp.inference": "head", "model.embedding_channels": 32}
    keys = {**IMAGES, "data.source": "digits", **unlike, **learning, **better}
    keys["model.hidden_channels"] = 4
    LocalGrid(tiny(strategy, tmp_path / "run", **keys)).serve()
    assert summary_of(tmp_path / "run")["test_accuracy"] > floor


def test_mnist_and_usps_are_two_domains(data_root):
    keys = {
        **IMAGES,
        "data.root": str(data_root),
        "data.source": "images/mnist_test10k.npz, images/usps.npz",
        "data.images.size": 16,
        "partition.clients": 6,
        "strategy.name": "fedavg",
    }
    found = albums(Experiment.from_flat(keys))
    assert found.whole.x.shape == (19298, 1, 16, 16)
    assert [int(album.rows.max()) < 10000 for album in found.albums] == [True] * 3 + [False] * 3
