"""Recommendations in a federation: what crosses the wire, what fit may see, and what a score is."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from federation.learners import RecommendLearner
from federation.learners.platforms import platform_of, platforms
from federation.records import to_tensors, unpack
from federation.scores import SCORES
from federation.strategies import ALGORITHMS
from federation.strategies.weights import shared_weights
from federation.tables import TRAINED_RECOMMENDERS
from graphcl.datasets import Interactions, save_interactions, simulate_interactions
from graphcl.recommend import RECOMMENDERS, SASRec, Sequences
from simulations.carriers.local import LocalGrid

FEDERATED = ("local", "fedavg", "fedprox", "fedproto", "feddbp")
NUM_ITEMS, NUM_USERS = (41, 53, 61), (14, 15, 17)  # of the platforms; the width of no layer


def shoppers(users: int, items: int, seed: int = 0) -> Interactions:
    found = simulate_interactions(users, items, seed=seed).interactions
    return replace(found, name=f"shop-{seed}")


@pytest.fixture
def three_shops(stored_platforms):
    """Return the keys of three platforms of unlike sizes."""
    sizes = zip(NUM_USERS, NUM_ITEMS, strict=True)
    return stored_platforms(*(shoppers(*size, seed) for seed, size in enumerate(sizes)))


@pytest.fixture
def with_user_tables(monkeypatch):
    """Let a method have a row per user, which it learns."""

    class WithUsers(SASRec):
        def build(self, features):
            super().build(features)
            self.user_long = nn.Embedding(self.num_users + 1, self.config.hidden_channels)

        def states(self, batch, last=False):
            return super().states(batch, last) + self.user_long(batch.user)[:, None]

    monkeypatch.setitem(RECOMMENDERS, "sasrec", WithUsers)


def same(one, other) -> bool:
    assert set(one) == set(other)
    return all(torch.equal(one[name], other[name]) for name in one)


def kept(grid, partition: int) -> dict[str, torch.Tensor]:
    return unpack(grid.contexts[partition].state.array_records["learner"])


def evaluated(grid, partition: int, server_round: int = 2) -> dict[str, float]:
    return dict(grid.replies["evaluate", server_round, partition].content["metrics"])


def test_a_penalty_leaves_the_items_that_a_client_does_not_offer(shops, tmp_path):
    settings = {"train.weight_decay": 0.1, "data.interactions.catalogue": 0.5}
    experiment = shops("fedavg", tmp_path / "run", **settings)
    learner = RecommendLearner(experiment, 0)
    network, offered = learner.model.network, learner.platform.offered
    before = network.item.weight.detach().clone()
    others = {name: w.detach().clone() for name, w in network.named_parameters()}
    learner.fit(lambda forward: {})
    after = network.item.weight.detach()
    assert torch.equal(after[~offered], before[~offered])
    assert not torch.equal(after[offered], before[offered])
    assert all(not torch.equal(w, others[name]) for name, w in network.named_parameters())


def test_sessions_end_after_the_pause_that_the_file_names(shops, tmp_path):
    settings = {"recommend.method": "slsrec", "recommend.gap": 1800}
    learner = RecommendLearner(shops("fedavg", tmp_path / "run", **settings), 0)
    assert learner.model.network.config.gap == 1800


# Every algorithm, on platforms and on dealt users.


@pytest.mark.parametrize("strategy", FEDERATED)
def test_platforms_learn_and_nothing_with_a_row_per_item_or_user_crosses(
    shops, staged, three_shops, with_user_tables, tmp_path, lines_of, strategy
):
    grid = staged(shops(strategy, tmp_path / "run", **three_shops))
    grid.serve()
    lines = lines_of(tmp_path / "run", kind="client", round=2)
    assert [line["status"] for line in lines] == ["ok"] * 3
    for line in lines:
        scores = [line[score.key] for score in SCORES["recommend"] if score.key in line]
        assert len(scores) >= 7
        assert torch.tensor([*scores, line["val_ndcg_10"], line["test_loss"]]).isfinite().all()
    contents = [message.content for message in (*grid.sent.values(), *grid.replies.values())]
    assert len(contents) == 2 * 3 * 5  # hello, and two rounds of training and evaluation
    rows = {size + extra for size in (*NUM_ITEMS, *NUM_USERS) for extra in (0, 1)}
    for content in contents:
        for record in content.array_records.values():
            for name, tensor in to_tensors(record).items():
                assert not rows & set(tensor.shape), name
                assert not name.startswith(("network.item.", "network.user_long")), name


def test_what_reads_sequences_is_averaged_and_the_items_stay(shops, staged, three_shops, tmp_path):
    grid = staged(shops("fedavg", tmp_path, **three_shops))
    grid.serve()
    up = to_tensors(grid.replies["train", 2, 0].content["arrays"])
    model = RecommendLearner(grid.experiment, 0).model
    assert set(up) == set(model.state_dict()) - {"network.item.weight"}
    assert {"network.encoder.position", "network.encoder.norm.weight"} < set(up)
    for partition, size in enumerate(NUM_ITEMS):
        assert set(kept(grid, partition)) == {"network.item.weight"}
        assert kept(grid, partition)["network.item.weight"].shape == (size + 1, 8)


def test_of_bipcl_the_intents_cross_and_the_items_stay(shops, staged, three_shops, tmp_path):
    grid = staged(shops("fedavg", tmp_path, **three_shops, **{"recommend.method": "bipcl"}))
    grid.serve()
    up = to_tensors(grid.replies["train", 2, 0].content["arrays"])
    intents = {f"network.{side}_intent.prototype" for side in ("item", "user")}
    assert {n for n in up if not n.startswith("network.encoder.")} == intents
    assert set(kept(grid, 0)) == {"network.item.weight"}


def test_dealt_users_share_the_items_and_keep_nothing(shops, staged, tmp_path):
    grid = staged(shops("fedavg", tmp_path))
    grid.serve()
    up = to_tensors(grid.replies["train", 2, 0].content["arrays"])
    assert set(up) == set(RecommendLearner(grid.experiment, 0).model.state_dict())
    assert up["network.item.weight"].shape == (41, 8)
    assert all(len(grid.contexts[partition].state) == 0 for partition in range(3))


def test_the_vectors_of_dealt_users_stay(shops, staged, with_user_tables, tmp_path):
    grid = staged(shops("fedavg", tmp_path))
    grid.serve()
    assert "network.item.weight" in to_tensors(grid.replies["train", 2, 0].content["arrays"])
    for partition in range(3):
        assert set(kept(grid, partition)) == {"network.user_long.weight"}
        assert kept(grid, partition)["network.user_long.weight"].shape == (9, 8)


@pytest.mark.parametrize("strategy", ["fedavg", "feddbp", "local"])
@pytest.mark.parametrize("method", TRAINED_RECOMMENDERS)
def test_clients_start_from_the_servers_weights(shops, three_shops, strategy, method):
    keys = {"recommend.method": method, **three_shops}
    experiment = shops(strategy, **keys)
    learners = [RecommendLearner(experiment, client) for client in (0, 1)]
    models = [learner.model for learner in learners]
    widths = learners[0].widths
    models.append(RecommendLearner.build(experiment, "server", widths, 1))
    first, other, server = (shared_weights(model, experiment) for model in models)
    alike = [{n: w for n, w in m.items() if n.startswith("network.")} for m in (first, other)]
    assert same(alike[0], server)
    assert same(alike[1], server)
    tables = [model.network.item.weight for model in models[:2]]
    assert not torch.equal(tables[0][1:30], tables[1][1:30])


def test_clients_that_keep_nothing_take_turns_with_one_network(shops, staged, tmp_path):
    """A thousand of them would not fit; the figures are those of networks of their own."""
    experiment = shops("fedavg", tmp_path)
    one, other = (RecommendLearner(experiment, client) for client in (0, 1))
    assert one.model is other.model
    stays = shops("fedavg", **{"strategy.personal_weights": "network.encoder.norm"})
    one, other = (RecommendLearner(stays, client) for client in (0, 1))
    assert one.model is not other.model


def test_the_last_of_a_round_does_not_decide_what_another_is_scored_by(shops, staged, tmp_path):
    grid = staged(shops("fedavg", tmp_path))
    grid.serve()
    weights = to_tensors(grid.sent["evaluate", 2, 0].content["arrays"])
    for partition in range(3):
        assert evaluated(grid, partition)["ndcg-10"] == by_hand(grid, partition, weights)


@pytest.mark.parametrize(
    ("strategy", "method"),
    [*((name, "sasrec") for name in FEDERATED), *(("fedavg", m) for m in TRAINED_RECOMMENDERS)],
)
def test_a_client_with_one_user_takes_part(shops, staged, tmp_path, lines_of, strategy, method):
    keys = {"data.interactions.users": 5, "partition.clients": 5, "strategy.fraction": 0.4}
    keys["recommend.method"] = method
    grid = staged(shops(strategy, tmp_path / "run", **keys))
    grid.serve()
    for server_round in (1, 2):
        lines = lines_of(tmp_path / "run", kind="client", round=server_round)
        assert sorted(line["status"] for line in lines) == ["idle"] * 3 + ["ok"] * 2
        assert [line["test_examples"] for line in lines] == [1] * 5
        assert all(line["ndcg_10"] <= line["hit_ratio_10"] <= 1 for line in lines)


def test_who_has_nothing_to_be_tested_on_trains_and_has_figures(shops, tmp_path, lines_of):
    """They weigh nothing in the mean."""
    sequences = [[1, 2], [1, 2], [1, 2, 3, 4], [5, 6, 7, 8]]
    user = torch.arange(4).repeat_interleave(torch.tensor([2, 2, 4, 4]))
    item = torch.tensor([i for items in sequences for i in items])
    save_interactions(Interactions("few", user, item, 4, 9), tmp_path / "few.npz")
    keys = {"data.source": str(tmp_path / "few.npz"), "partition.clients": 4}
    LocalGrid(shops("fedavg", tmp_path / "run", **keys)).serve()
    lines = lines_of(tmp_path / "run", kind="client", round=2)
    assert sorted(line["test_examples"] for line in lines) == [0, 0, 1, 1]
    [total] = lines_of(tmp_path / "run", kind="round", round=2)
    of_those_who_have = [line["mrr"] for line in lines if line["test_examples"]]
    assert total["mrr"] == pytest.approx(sum(of_those_who_have) / 2)
    assert all(math.isfinite(line["test_loss"]) for line in lines)


@pytest.mark.parametrize("scheme", ["users", "natural"])
@pytest.mark.parametrize(
    "method", ["sasrec", "bipcl"]
)  # bipcl holds a sparse matrix beside weights
def test_pooled_learns_one_model_of_all(shops, staged, three_shops, tmp_path, scheme, method):
    keys = three_shops if scheme == "natural" else {"data.interactions.catalogue": 0.6}
    keys = {**keys, "recommend.method": method}
    grid = staged(shops("pooled", tmp_path / "run", **keys))
    grid.serve()
    assert {key[2] for key in grid.sent if key[0] == "train"} == {0}
    served = to_tensors(grid.sent["evaluate", 2, 1].content["arrays"])
    rows = 1 + (sum(NUM_ITEMS) if scheme == "natural" else 40)
    assert served["network.item.weight"].shape == (rows, 8)
    for partition in range(3):
        assert evaluated(grid, partition)["ndcg-10"] == by_hand(grid, partition, served)


# What fit may see.


@pytest.mark.parametrize("strategy", ["local", "fedavg", "feddbp"])
def test_held_out_events_never_reach_the_weights(shops, staged, tmp_path, new_process, strategy):
    whole = shoppers(24, 41)
    last = whole.indptr[1:] - 1

    def changed(rows: torch.Tensor) -> Interactions:
        item = whole.item.clone()
        item[rows] = item[rows] % 40 + 1
        return replace(whole, item=item)

    found, scores = [], []
    variants = {
        "true": whole,
        "later": changed(torch.cat([last, last - 1])),
        "seen": changed(last - 2),
    }
    for name, variant in variants.items():
        new_process()
        (tmp_path / name).mkdir()
        path = tmp_path / name / "shop.npz"
        save_interactions(variant, path)
        keys = {"data.source": str(path), "strategy.personal_weights": "network.encoder.norm"}
        grid = staged(shops(strategy, tmp_path / name / "run", **keys))
        grid.serve()
        content = grid.replies["train", 2, 0].content.array_records
        arrays = [to_tensors(record) for record in content.values()]
        found.append({**kept(grid, 0), **{k: v for one in arrays for k, v in one.items()}})
        scores.append(evaluated(grid, 0)["mrr"])
    assert same(found[0], found[1])
    assert scores[0] != scores[1]
    assert not same(found[0], found[2])


def test_categories_are_told_of_under_prototype_algorithms_alone(shops):
    for strategy in ("fedavg", "local", "fedproto", "feddbp"):
        learner, given = RecommendLearner(shops(strategy), 0), []
        terms = learner.fit(lambda out, given=given: given.append(out) or {})
        train = learner.platform.train
        followed = train.item[1:][train.user.diff() == 0]
        seen = torch.cat([out.y for out in given])
        if strategy in ("fedavg", "local"):
            assert not len(seen)
            assert learner.facts()["num-examples"] == len(followed)
        else:
            label = learner.platform.label[followed]
            assert seen.sort().values.equal(label.sort().values)
        assert set(terms) == {"softmax", "loss"}


@pytest.mark.parametrize("strategy", ["fedproto", "feddbp"])
def test_prototypes_are_means_of_states_before_items_of_a_category(
    shops, staged, tmp_path, strategy
):
    grid = staged(shops(strategy, tmp_path, **{"recommend.method": "gru4rec"}))
    grid.serve()
    content = grid.replies["train", 2, 1].content
    upload = to_tensors(content["prototypes"])
    experiment, platform = grid.experiment, platform_of(grid.experiment, 1)
    projector = ALGORITHMS[strategy].exchange.projector(experiment)
    learner = RecommendLearner(experiment, 1, projector)
    learner.load_state(kept(grid, 1))
    model, states = learner.model.eval(), {}
    network, train = learner.model.network, platform.train
    for user in range(train.num_users):
        items = train.sequence(user)
        for end in range(1, len(items)):
            start = window_start(end, len(items) - 1, 6)
            history = items[start:end][None]
            with torch.no_grad():
                state = model.projector(read(network, history, user))
            states.setdefault(int(platform.label[items[end]]), []).append(state)
    states.pop(-1, None)
    assert upload["classes"].tolist() == sorted(states)
    for row, number in enumerate(sorted(states)):
        assert int(upload["support"][row]) == len(states[number])
        mean = torch.stack(states[number]).mean(0)
        torch.testing.assert_close(upload["values"][row], mean, rtol=1e-4, atol=1e-5)
    assert int(upload["support"].sum()) == content["metrics"]["num-examples"]


def window_start(end: int, pairs: int, length: int) -> int:
    """Return where the window begins that asks for the item at ``end``: windows overlap by half."""
    start, stride = 0, length - length // 2
    while end > start + length:
        start += stride
    return start


def read(network, history: torch.Tensor, user: int) -> torch.Tensor:
    batch = Sequences(history, torch.zeros_like(history), torch.tensor([user + 1]))
    return network.states(batch)[0, -1]


# Scores.


def by_hand(grid, partition: int, weights, metric: str = "ndcg") -> float:
    """Return a client's score on its test events, user by user."""
    experiment = grid.experiment
    platform = platform_of(experiment, partition)
    network = RecommendLearner(experiment, partition).model.network
    network.load_state_dict({n.removeprefix("network."): w for n, w in weights.items()})
    network.eval()
    train, val, test = platform.own
    gains = []
    for user, target in zip(test.user.tolist(), test.item.tolist(), strict=True):
        history = torch.cat([train.sequence(user), val.sequence(user)])
        with torch.no_grad():
            state = read(network, history[-6:][None], user)
        scores = network.item_vectors().detach() @ state
        rival = torch.ones(len(scores), dtype=torch.bool)
        if platform.offered is not None:
            rival &= platform.offered
        rival[[0, target, *history.tolist()]] = False
        rank = 1 + int((scores[rival] > scores[target]).sum())
        hit = rank <= 10 and target not in history.tolist()
        gains.append(1 / math.log2(rank + 1) if hit else 0.0)
    return pytest.approx(sum(gains) / len(gains), abs=1e-6)


@pytest.mark.parametrize("keys", [{}, {"data.interactions.catalogue": 0.6}])
def test_scores_are_those_of_ranks_among_what_a_client_offers(shops, staged, tmp_path, keys):
    grid = staged(shops("local", tmp_path, **keys))
    grid.serve()
    for partition in range(3):
        state = kept(grid, partition).items()
        weights = {n.removeprefix("model/"): v for n, v in state if n.startswith("model/")}
        found = evaluated(grid, partition)
        assert found["ndcg-10"] == by_hand(grid, partition, weights)
        assert found["test-loss"] == 1 - found["ndcg-10"]
        assert found["hit-ratio-5"] <= found["hit-ratio-10"] <= found["hit-ratio-20"]


def test_an_item_that_the_user_had_before_is_a_miss(shops, stored_platforms):
    items = torch.tensor([[1, 2, 3, 4, 1], [4, 3, 2, 1, 4]])
    user = torch.arange(2).repeat_interleave(5)
    again = Interactions("again", user, items.flatten(), 2, 4)
    learner = RecommendLearner(shops(**stored_platforms(again)), 0)
    found = learner.evaluate(lambda out: {})
    assert (found["hit-ratio-20"], found["mrr"], found["test-loss"]) == (0, 0, 1)
    assert found["val-ndcg-10"] > 0


def test_groups_of_items_weigh_as_many_events_as_they_have(shops, tmp_path, staged, lines_of):
    """A client's share of the tail must not count for its events of the head."""
    grid = staged(shops("fedavg", tmp_path / "run", **{"data.interactions.users": 90}))
    grid.serve()
    [total] = lines_of(tmp_path / "run", kind="round", round=2)
    for group in ("head", "tail"):
        hits = events = 0.0
        for partition in range(3):
            found = evaluated(grid, partition)
            if f"{group}-examples" in found:
                events += found[f"{group}-examples"]
                hits += found[f"hit-ratio-10-{group}"] * found[f"{group}-examples"]
        assert total[f"hit_ratio_10_{group}"] == pytest.approx(hits / events)
        assert 0 < events < 90


# What a federation gains, and from one process to the next.


def test_shops_of_few_users_learn_more_together_than_alone(shops, tmp_path, summary_of):
    """A run had an NDCG@10 of .39 alone and of .58 together."""
    keys = {
        "data.interactions.users": 120,
        "partition.clients": 6,
        "model.embedding_channels": 16,
        "recommend.length": 12,
        "train.epochs": 2,
        "train.weight_decay": 0.0,
        "run.rounds": 6,
        "run.evaluate_every": 3,
    }
    found = {}
    for strategy in ("local", "fedavg"):
        LocalGrid(shops(strategy, tmp_path / strategy, **keys)).serve()
        found[strategy] = summary_of(tmp_path / strategy)["test_ndcg_10"]
    assert found["fedavg"] > found["local"] + 0.08


@pytest.mark.parametrize(("strategy", "natural"), [("fedavg", True), ("feddbp", False)])
def test_a_killed_run_resumes_to_the_same_digest(
    shops, three_shops, tmp_path, summary_of, new_process, killed_and_resumed, strategy, natural
):
    keys = {"run.rounds": 3, **(three_shops if natural else {})}
    new_process()
    LocalGrid(shops(strategy, tmp_path / "whole", **keys)).serve()
    killed_and_resumed(shops(strategy, tmp_path / "killed", **keys), 2)
    digests = {summary_of(tmp_path / folder)["digest"] for folder in ("whole", "killed")}
    assert len(digests) == 1


def test_every_client_knows_the_classes_of_all(shops, three_shops):
    experiment = shops("feddbp", **three_shops)
    facts = [RecommendLearner(experiment, client).facts() for client in range(3)]
    assert {told["num-classes"] for told in facts} == {platforms(experiment).num_classes}
