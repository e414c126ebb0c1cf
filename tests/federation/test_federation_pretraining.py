"""Pre-training in a federation: what labels may reach, what stays on a node, what crosses."""

import pytest
import torch
from torch_geometric.data import Batch

from federation.experiment import Experiment
from federation.learners import NodeLearner, PretrainingLearner
from federation.learners.graphs import client_graphs, graph_of
from federation.learners.pretraining import fit_probe
from federation.records import to_tensors, unpack
from graphcl.errors import ConfigError
from graphcl.nodes import linear_probe
from graphcl.training import seed_everything
from simulations.carriers.local import LocalGrid

PRETRAIN = {"task.name": "pretrain", "pretrain.aspect.order": 3, "train.weight_decay": 0.0}
GATE = {**PRETRAIN, "strategy.personal_weights": "encoder.policy"}


def swap_labels(monkeypatch, experiment) -> None:
    """Give every node of client 1 another class, for the rest of the test."""
    graphs = type(client_graphs(experiment).graphs)
    original = graphs.__getitem__

    def swapped(self, client):
        graph = original(self, client)
        if client == 1:
            graph.y = (graph.y + 1) % 3
        return graph

    monkeypatch.setattr(graphs, "__getitem__", swapped)


def encoder_after_training(grid, partition: int = 1) -> dict[str, torch.Tensor]:
    state = unpack(grid.contexts[partition].state.array_records["learner"])
    return {name: v for name, v in state.items() if name.startswith("model/encoder.")}


def same(one, other) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("method", ["aspect", "grace"])
@pytest.mark.parametrize(
    ("strategy", "reached"), [("local", False), ("fedproto", True), ("feddbp", True)]
)
def test_labels_reach_an_encoder_through_prototypes_alone(
    tiny, staged, tmp_path, monkeypatch, new_process, strategy, reached, method
):
    keys = {**PRETRAIN, "pretrain.method": method}
    encoders = []
    for folder in ("true", "swapped"):
        experiment = tiny(strategy, tmp_path / folder, **keys)
        if folder == "swapped":
            swap_labels(monkeypatch, experiment)
        new_process()
        grid = staged(experiment)
        grid.serve()
        encoders.append(encoder_after_training(grid))
    assert same(*encoders) is not reached


@pytest.mark.parametrize("strategy", ["fedavg", "fedprox"])
def test_labels_never_cross_with_the_weights(
    tiny, staged, tmp_path, monkeypatch, new_process, strategy
):
    sent = []
    for folder in ("true", "swapped"):
        experiment = tiny(strategy, tmp_path / folder, **PRETRAIN)
        if folder == "swapped":
            swap_labels(monkeypatch, experiment)
        new_process()
        grid = staged(experiment)
        grid.serve()
        sent.append(to_tensors(grid.replies["train", 2, 1].content["arrays"]))
    assert same(*sent)
    assert not any("head" in name for name in sent[0])


def test_a_client_weighs_its_nodes_without_labels_and_its_labels_with_prototypes(tiny):
    for strategy, field in (("fedavg", None), ("feddbp", "train_mask")):
        experiment = tiny(strategy, **PRETRAIN)
        graph = client_graphs(experiment).graphs[0]
        expected = len(graph.y) if field is None else int(graph[field].sum())
        assert PretrainingLearner(experiment, 0).facts()["num-examples"] == expected


def test_the_gate_stays_on_its_node_and_all_else_is_shared(tiny, staged, tmp_path):
    grid = staged(tiny("fedavg", tmp_path, **GATE, **{"train.epochs": 4}))
    grid.serve()
    down = to_tensors(grid.sent["evaluate", 2, 0].content["arrays"])
    whole = PretrainingLearner(tiny("fedavg", **GATE), 0).model.state_dict()
    kept = [unpack(grid.contexts[p].state["learner"]) for p in range(3)]
    assert set(kept[0]) == {name for name in whole if name.startswith("encoder.policy.")}
    assert set(down) == set(whole) - set(kept[0])
    assert set(to_tensors(grid.replies["train", 2, 0].content["arrays"])) == set(down)
    for other in kept[1:]:
        assert not same(kept[0], other)
    assert all(float(own["encoder.policy.shares.weight"].abs().max()) > 0 for own in kept)


def test_a_kept_gate_comes_back_with_the_next_round(tiny, staged, tmp_path, monkeypatch):
    grid, seen = staged(tiny("fedavg", tmp_path, **GATE)), {}
    original = PretrainingLearner.fit

    def fit(learner, penalty):
        if grid.now == ("train", 2, 1):
            seen.update({n: v.clone() for n, v in learner.model.state_dict().items()})
        return original(learner, penalty)

    monkeypatch.setattr(PretrainingLearner, "fit", fit)
    grid.serve()
    aggregate = to_tensors(grid.sent["train", 2, 1].content["arrays"])
    kept = unpack(grid.states["train", 1, 1]["after"]["learner"])
    after = unpack(grid.states["train", 2, 1]["after"]["learner"])
    assert same(aggregate | kept, seen)
    assert not same(kept, after)


def test_a_personal_head_works_for_classification_too(tiny, staged, tmp_path):
    grid = staged(tiny("fedprox", tmp_path, **{"strategy.personal_weights": "head"}))
    grid.serve()
    assert set(unpack(grid.contexts[0].state["learner"])) == {"head.weight", "head.bias"}
    names = set(to_tensors(grid.sent["train", 2, 0].content["arrays"]))
    assert names
    assert not any(name.startswith("head") for name in names)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("encoder.polcy", r"'encoder\.polcy' names no weight of the model; it has encoder\.low"),
        ("encoder.pol", "names no weight"),
        ("encoder", "no weight is left to share"),
    ],
)
def test_personal_weights_must_name_some_and_leave_some(tiny, tmp_path, names, message):
    experiment = tiny("fedavg", tmp_path, **{**PRETRAIN, "strategy.personal_weights": names})
    with pytest.raises(ConfigError, match=message):
        LocalGrid(experiment).serve()


@pytest.mark.parametrize("keys", [PRETRAIN, GATE], ids=["shared", "own-gate"])
@pytest.mark.parametrize("strategy", ["fedavg", "local", "feddbp", "pooled"])
def test_killed_pretraining_resumes_to_the_same_digest(
    tiny, tmp_path, summary_of, killed_and_resumed, strategy, keys
):
    keys = {**keys, "run.rounds": 4, "strategy.fraction": 0.7}
    LocalGrid(tiny(strategy, tmp_path / "whole", **keys)).serve()
    killed_and_resumed(tiny(strategy, tmp_path / "killed", **keys), 3)
    assert summary_of(tmp_path / "killed")["digest"] == summary_of(tmp_path / "whole")["digest"]


def test_the_probe_is_as_good_as_the_protocols_and_of_the_samples_alone(tiny):
    experiment = tiny(
        "local",
        **PRETRAIN,
        **{"data.csbm.nodes": 400, "train.epochs": 20, "model.embedding_channels": 16},
    )
    learner = PretrainingLearner(experiment, 0)
    learner.fit(lambda _: {})
    out = learner.forward()
    first = learner.head.weight.clone()
    with torch.no_grad():
        learner.head.weight.add_(1.0)
    learner.forward()
    assert torch.equal(learner.head.weight, first)  # whatever was there before
    masks = [learner.masks[split] for split in ("train", "val", "test")]
    protocol = linear_probe(out.embedding, out.y, *masks, patience=200).mean
    own = float((out.logits.argmax(1) == out.y)[masks[2]].double().mean())
    assert own >= protocol - 0.03


def test_the_probe_solves_its_problem():
    """The gradient of the stated objective vanishes, in float64."""
    rng = torch.Generator().manual_seed(0)
    z, y = torch.randn(40, 6, generator=rng), torch.arange(40) % 3
    head = torch.nn.Linear(6, 3)
    fit_probe(head, z, y, 0.1)
    weight = head.weight.detach().double().requires_grad_()
    logits = z.double() @ weight.t() + head.bias.detach().double()
    loss = torch.nn.functional.cross_entropy(logits, y) + 0.05 * weight.square().sum()
    [gradient] = torch.autograd.grad(loss, weight)
    assert float(gradient.abs().max()) < 1e-4
    assert float(weight.detach().abs().max()) > 0.01


def test_pretraining_on_a_gpu_is_refused_before_it_starts():
    with pytest.raises(ConfigError, match=r"simulation\.gpus_per_client: .* runs on the CPU"):
        Experiment.from_flat({"task.name": "pretrain", "simulation.gpus_per_client": 0.5})


def test_odd_width_cannot_be_halved_for_pretraining_either():
    keys = {"task.name": "pretrain", "run.compare": "feddbp", "strategy.feddbp.fuse": "concat"}
    with pytest.raises(ConfigError, match="7 cannot be halved"):
        Experiment.from_flat(keys | {"model.embedding_channels": 7})
    keys = {"task.name": "pretrain", "pretrain.aspect.fusion": "concat"}
    with pytest.raises(ConfigError, match="7 cannot be halved for the two channels"):
        Experiment.from_flat(keys | {"strategy.name": "fedavg", "model.embedding_channels": 7})


def test_encoders_of_the_other_task_hinder_nothing():
    keys = {"task.name": "pretrain", "model.encoders": "gcn, sage", "strategy.name": "fedavg"}
    assert Experiment.from_flat(keys).encoder_names == ["aspect"]


# Pooled training.


@pytest.mark.parametrize("keys", [{}, PRETRAIN], ids=["classify", "pretrain"])
def test_pooled_is_training_on_the_union(tiny, staged, tmp_path, keys):
    """Against a plain loop on the whole graph, for two clients and two rounds."""
    keys = {**keys, "partition.clients": 2, "train.epochs": 2}
    experiment = tiny("pooled", tmp_path, **keys)
    grid = staged(experiment)
    grid.serve()
    served = to_tensors(grid.sent["evaluate", 2, 1].content["arrays"])
    learner = (PretrainingLearner if "task.name" in keys else NodeLearner)(experiment, 0)
    first = to_tensors(grid.sent["train", 1, 0].content["arrays"])
    learner.load_weights(first)
    for server_round in (1, 2):
        seed_everything(experiment.run.seed, "fit", server_round, 0)
        learner.fit(lambda _: {})
    assert same(served, learner.model.state_dict())
    assert {key[2] for key in grid.sent if key[0] == "train"} == {0}
    assert {key[2] for key in grid.sent if key[0] == "evaluate"} == {0, 1}


def test_pooled_graph_has_the_cut_edges_and_every_clients_split(tiny):
    experiment = tiny("pooled")
    clients = client_graphs(experiment)
    pooled = [graph_of(experiment, client) for client in range(3)]
    assert clients.report.cut_edges > 0
    assert pooled[0].edge_index.size(1) == 2 * clients.report.edges
    for client, (whole, own) in enumerate(zip(pooled, clients.graphs, strict=True)):
        nodes = torch.from_numpy(clients.nodes[client])
        assert torch.equal(whole.x[nodes], own.x)
        assert torch.equal(whole.y[nodes], own.y)
        assert torch.equal(whole.train_mask[nodes], own.train_mask)
        assert torch.equal(whole.test_mask[nodes], own.test_mask)
        assert int(whole.test_mask.sum()) == int(own.test_mask.sum())
        assert int(whole.val_mask.sum()) == int(own.val_mask.sum())
    assert int(pooled[0].train_mask.sum()) == sum(int(g.train_mask.sum()) for g in clients.graphs)


def test_pooled_silos_are_their_disjoint_union(tiny, three_silos):
    keys = {"data.source": str(three_silos), "partition.scheme": "natural"}
    experiment = tiny("pooled", **keys)
    graphs = client_graphs(experiment).graphs
    union = Batch.from_data_list(graphs)
    pooled = graph_of(experiment, 1)
    assert torch.equal(pooled.x, union.x)
    assert torch.equal(pooled.edge_index, union.edge_index)
    assert torch.equal(pooled.train_mask, union.train_mask)
    assert pooled.test_mask.nonzero().flatten().tolist() == [
        12 + int(i) for i in graphs[1].test_mask.nonzero()
    ]


def test_two_classes_are_scored_by_the_roc_curve_too(tiny, staged, tmp_path, lines_of, summary_of):
    keys = {**PRETRAIN, "data.csbm.classes": 2}
    staged(tiny("pooled", tmp_path / "two", **keys)).serve()
    last = [
        line for line in lines_of(tmp_path / "two", kind="client", round=2) if "roc_auc" in line
    ]
    whole = sum(line["roc_auc"] * line["test_examples"] for line in last)
    mean = whole / sum(line["test_examples"] for line in last)
    [line] = lines_of(tmp_path / "two", kind="round", round=2)
    assert line["roc_auc"] == pytest.approx(mean)
    assert "test_roc_auc" in summary_of(tmp_path / "two")
    staged(tiny("pooled", tmp_path / "three", **PRETRAIN)).serve()
    assert "test_roc_auc" not in summary_of(tmp_path / "three")


def test_pooled_is_compared_client_by_client(tiny, staged, tmp_path, lines_of, summary_of):
    staged(tiny("pooled", tmp_path)).serve()
    lines = lines_of(tmp_path, kind="client", round=2)
    assert [line["status"] for line in lines] == ["ok", "idle", "idle"]
    graphs = client_graphs(tiny("local")).graphs
    assert [line["test_examples"] for line in lines] == [int(g.test_mask.sum()) for g in graphs]
    assert [line["val_examples"] for line in lines] == [int(g.val_mask.sum()) for g in graphs]
    assert summary_of(tmp_path)["worst_client_accuracy"] <= summary_of(tmp_path)["test_accuracy"]
