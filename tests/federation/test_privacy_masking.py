"""Masks cancel exactly, hide what they cover, and end a run that somebody is missing from."""

import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from flwr.app import ConfigRecord, RecordDict

from federation import client_app
from federation.privacy import masking
from federation.privacy.masking import decode, encode, largest, masked
from federation.records import from_bytes, num_bytes, to_arrays, to_bytes, to_tensors
from federation.strategies import masked as masked_prototypes
from graphcl.errors import ConfigError, FederationError, ReplyError
from simulations.carriers.local import LocalGrid

ON = {"privacy.masking": True}
SHAPE = (5, 40)
VARIANTS = {
    "fedproto-count": ("fedproto", {}),
    "fedproto-uniform": (
        "fedproto",
        {"strategy.fedproto.global_weight": "uniform", "strategy.fedproto.inference": "prototype"},
    ),
    "feddbp-fisher-soft": ("feddbp", {}),
    "feddbp-fisher-hard-bits": (
        "feddbp",
        {"strategy.feddbp.personal": "hard", "strategy.feddbp.fisher_bits": 1},
    ),
    "feddbp-count-soft": ("feddbp", {"strategy.feddbp.global_weight": "count"}),
    "feddbp-uniform-off": (
        "feddbp",
        {"strategy.feddbp.global_weight": "uniform", "strategy.feddbp.personal": "off"},
    ),
}


def key_pairs(clients: int, seed: int = 0) -> tuple[list[bytes], dict[int, bytes]]:
    rng = np.random.default_rng(seed)
    private = [rng.bytes(32) for _ in range(clients)]
    keys = [X25519PrivateKey.from_private_bytes(own).public_key() for own in private]
    return private, {client: key.public_bytes_raw() for client, key in enumerate(keys)}


def values_of(clients: int, seed: int = 1) -> np.ndarray:
    return 100 * np.random.default_rng(seed).standard_normal((clients, *SHAPE))


def bits(words: np.ndarray) -> np.ndarray:
    return np.unpackbits(words.view(np.uint8))


def record_of(grid, server_round: int, client: int) -> torch.Tensor:
    reply = grid.replies["train", server_round, client]
    return to_tensors(reply.content.array_records["prototypes"])["words"]


@pytest.mark.parametrize("clients", [2, 3, 10])
def test_masks_cancel_to_the_last_bit_whatever_the_keys_are(clients):
    plain = [encode(values, clients) for values in values_of(clients)]
    for seed in (0, 1):
        private, public = key_pairs(clients, seed)
        hidden = [masked(plain[c], private[c], public, c, "1 x") for c in range(clients)]
        assert np.array_equal(sum(hidden), sum(plain))
        short = sum(hidden[:-1])  # of all but one nothing can be read
        assert not np.any(short == sum(plain[:-1]))


def test_fixed_point_sums_are_the_sums_of_the_numbers():
    clients = 10
    values = values_of(clients)
    total = decode(sum(encode(one, clients) for one in values))
    np.testing.assert_allclose(total, values.sum(0), rtol=0, atol=clients * 2.0**-33)
    edge = np.full((2, clients), largest(clients))
    edge[1] *= -1
    assert np.array_equal(
        decode(sum(encode(edge[:, c], clients) for c in range(clients))), edge[:, 0] * clients
    )


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf, 1.01 * largest(3), -1e300])
def test_a_number_that_does_not_fit_is_an_error_that_says_where(wrong):
    values = np.zeros((2, 3))
    values[1, 2] = wrong
    with pytest.raises(ReplyError, match=r"at \[1, 2\] does not fit"):
        encode(values, 3)


def test_a_masked_record_looks_like_chance_and_never_twice_alike():
    private, public = key_pairs(3)
    same = encode(values_of(1)[0], 3)
    records = [masked(same, private[c], public, c, "1 x") for c in range(3)]
    records.append(masked(same, private[0], public, 0, "2 x"))  # the next round
    records.append(masked(same, private[0], public, 0, "1 y"))  # another record of the round
    others, known = key_pairs(3, seed=9)  # the same round of another run
    records.append(masked(same, others[0], known, 0, "1 x"))
    for words in records:
        assert abs(bits(words).mean() - 0.5) < 0.03  # 12800 bits: seven standard deviations
        assert abs(bits(words - same).mean() - 0.5) < 0.03
        share = words.astype(np.float64) / 2.0**64
        assert abs(share.mean() - 0.5) < 0.13  # 200 words: six standard deviations
    for i, one in enumerate(records):
        for other in records[i + 1 :]:
            assert abs((bits(one) != bits(other)).mean() - 0.5) < 0.03
            assert abs(bits(one - other).mean() - 0.5) < 0.03  # no mask is used twice
    zero = np.zeros_like(same)
    assert np.array_equal(  # what is covered does not change the mask
        records[0] - same, masked(zero, private[0], public, 0, "1 x")
    )


def test_every_round_and_every_array_has_a_mask_of_its_own():
    states = [RecordDict(), RecordDict()]
    public = {str(client): masking.new_key(state) for client, state in enumerate(states)}
    zeros = torch.zeros(SHAPE, dtype=torch.int64)
    found = []
    for server_round in (1, 2):
        reply = RecordDict(
            {"one": to_arrays({"a": zeros, "b": zeros}), "two": to_arrays({"a": zeros})}
        )
        sent = {"config": ConfigRecord({"server-round": server_round})}
        sent["masking"] = ConfigRecord(public)
        masking.hide(reply, RecordDict(sent), states[0], 0, 2)
        found += [
            array.numpy() for record in reply.array_records.values() for array in record.values()
        ]
    assert len(found) == 6
    for i, one in enumerate(found):
        for other in found[i + 1 :]:
            assert abs(bits(one - other).mean() - 0.5) < 0.03


def test_a_key_that_was_swapped_or_is_none_is_refused():
    private, public = key_pairs(3)
    words = np.zeros(SHAPE, dtype=np.uint64)
    with pytest.raises(ReplyError, match="client 0 is not its own"):
        masked(words, private[0], {**public, 0: public[1]}, 0, "1 x")
    with pytest.raises(ReplyError, match="client 2 cannot be used"):
        masked(words, private[0], {**public, 2: bytes(32)}, 0, "1 x")
    with pytest.raises(ReplyError, match="client 2 cannot be used"):
        masked(words, private[0], {**public, 2: b"short"}, 0, "1 x")


@pytest.mark.parametrize("variant", VARIANTS)
def test_masked_runs_end_as_unmasked_ones(
    variant, tiny, staged, tmp_path, summary_of, lines_of, new_process
):
    strategy, keys = VARIANTS[variant]
    grids = {}
    for name, more in (("open", {}), ("masked", ON)):
        new_process()
        grids[name] = staged(tiny(strategy, tmp_path / name, **keys, **more))
        grids[name].serve()
    one, other = summary_of(tmp_path / "open"), summary_of(tmp_path / "masked")
    scores = [key for key in one if "accuracy" in key]
    assert len(scores) > 2
    assert {key: other[key] for key in scores} == {key: one[key] for key in scores}
    for client in range(3):
        tables = {}
        for name, grid in grids.items():
            # What the client works with: from the server, or fused by itself.
            new_process()
            context = grid.contexts[client]
            with client_app.exchange_of(context, keep=False) as exchange:
                exchange.receive(grid.sent["evaluate", 2, client].content)
                tables[name] = exchange.table
        assert torch.equal(tables["open"].known, tables["masked"].known)
        torch.testing.assert_close(
            tables["masked"].values, tables["open"].values, rtol=1e-6, atol=1e-6
        )
    for server_round in (1, 2):
        losses = [
            [line["loss"] for line in lines_of(tmp_path / name, kind="client", round=server_round)]
            for name in grids
        ]
        assert losses[0] == pytest.approx(losses[1], abs=1e-6)


@pytest.mark.parametrize("strategy", ["fedproto", "feddbp"])
def test_the_table_is_that_of_bare_sums_bit_for_bit(
    strategy, tiny, tmp_path, monkeypatch, summary_of, new_process
):
    for name in ("a", "b"):  # keys are drawn from the system, results do not depend on them
        new_process()
        LocalGrid(tiny(strategy, tmp_path / name, **ON)).serve()
    monkeypatch.setattr(masking, "masked", lambda words, *_: words)
    new_process()
    LocalGrid(tiny(strategy, tmp_path / "bare", **ON)).serve()
    digests = {summary_of(tmp_path / name)["digest"] for name in ("a", "b", "bare")}
    assert len(digests) == 1


@pytest.mark.parametrize("strategy", ["fedproto", "feddbp"])
def test_the_server_sees_no_class_no_importance_and_no_key(strategy, tiny, staged, tmp_path):
    grid = staged(tiny(strategy, tmp_path, **ON))
    grid.serve()
    columns = {"fedproto": 6 + 1, "feddbp": 6 + 6}[strategy]
    for client in range(3):
        content = grid.replies["train", 1, client].content
        assert set(content) == {"prototypes", "metrics"}
        assert set(content["prototypes"]) == {"words"}
        # One shape for all, though with so few samples clients differ in what they hold.
        assert record_of(grid, 1, client).shape == (3, columns)
        assert not (record_of(grid, 1, client) == 0).any()
        # All clients get the same table: their own fusion is theirs.
        down = grid.sent["evaluate", 2, client].content["prototypes"]
        first = grid.sent["evaluate", 2, 0].content["prototypes"]
        assert to_bytes_of(down) == to_bytes_of(first)
    servers = [path.read_bytes() for path in (tmp_path / "checkpoint").glob("server-*.bin")]
    assert servers
    wire = [to_bytes(m.content) for m in (*grid.sent.values(), *grid.replies.values())]
    for client in range(3):
        private = grid.contexts[client].state.config_records["masking"]["private"]
        assert len(private) == 32
        assert not any(private in seen for seen in (*wire, *servers))


def to_bytes_of(arrays) -> list[bytes]:
    return [array.data for array in arrays.values()]


@pytest.mark.parametrize("variant", ["fedproto-count", "feddbp-fisher-soft"])
@pytest.mark.parametrize("server_round", [1, 2, 3])
def test_a_killed_run_resumes_to_the_same_digest_under_new_keys(
    variant, server_round, tiny, tmp_path, summary_of, new_process, killed_and_resumed
):
    strategy, keys = VARIANTS[variant]
    keys = {**keys, **ON, "run.rounds": 3}
    new_process()
    LocalGrid(tiny(strategy, tmp_path / "whole", **keys)).serve()
    killed_and_resumed(tiny(strategy, tmp_path / "killed", **keys), server_round)
    assert summary_of(tmp_path / "killed")["digest"] == summary_of(tmp_path / "whole")["digest"]


def test_a_resumed_run_masks_under_other_keys(tiny, staged, tmp_path):
    experiment = tiny("fedproto", tmp_path, **ON, **{"run.rounds": 1})
    first = staged(experiment)
    first.serve()
    again = staged(experiment.override({"run.rounds": 2}))
    again.serve()
    one, other = (grid.replies["query.hello", 0, 1].content for grid in (first, again))
    assert one.config_records["masking"] != other.config_records["masking"]


def test_a_run_in_the_same_process_does_not_see_the_one_before(tiny, tmp_path, summary_of):
    for folder in ("one", "two"):
        LocalGrid(tiny("feddbp", tmp_path / folder, **ON)).serve()
    (tmp_path / "two").rename(tmp_path / "before")
    LocalGrid(tiny("feddbp", tmp_path / "two", **ON)).serve()  # its exchanges are still there
    assert summary_of(tmp_path / "two")["digest"] == summary_of(tmp_path / "one")["digest"]
    fresh = LocalGrid(tiny("feddbp", tmp_path / "two", **ON)).contexts[0]
    with client_app.exchange_of(fresh, keep=False) as exchange:
        assert exchange.own is None


def test_no_round_is_masked_twice_under_one_key(tiny, staged, tmp_path):
    grid = staged(tiny("fedproto", tmp_path, **ON))
    grid.serve()
    [reply] = LocalGrid.deliver(grid, [grid.sent["train", 2, 0]], None)
    assert "whose mask is used up" in reply.error.reason


def test_a_node_without_its_key_or_the_keys_of_all_sends_nothing(tiny, staged, tmp_path):
    grid = staged(tiny("fedproto", tmp_path, **ON))
    grid.serve()
    message = grid.sent["train", 2, 0]
    kept = grid.contexts[0].state.config_records["masking"]
    kept["round"] = 1
    del message.content["masking"]["2"]
    [reply] = LocalGrid.deliver(grid, [message], None)
    assert "got public keys of the clients [0, 1], not of all 3" in reply.error.reason
    del grid.contexts[0].state["masking"]
    [reply] = LocalGrid.deliver(grid, [message], None)
    assert "lost its key" in reply.error.reason


def test_a_missing_client_ends_the_run_and_is_named(tiny, staged, tmp_path, lines_of):
    grid = staged(tiny("fedproto", tmp_path, **ON, **{"run.min_success": 0.1}))
    grid.lost.add(("train", 2, 1))
    with pytest.raises(FederationError, match=r"round 2: 2 of 3 .*client 1: no reply.*masks") as e:
        grid.serve()
    assert "nobody holds a share of a client's key" in str(e.value)
    [line] = lines_of(tmp_path, kind="client", round=2, partition=1)
    assert line["status"] == "failed"
    assert (tmp_path / "checkpoint" / "server-1.bin").exists()


def test_a_client_that_fails_in_training_ends_the_run(tiny, staged, tmp_path, in_fit):
    grid = staged(tiny("feddbp", tmp_path, **ON, **{"run.min_success": 0.1}))

    def fail(learner, penalty, fit):
        raise RuntimeError("out of luck")

    in_fit(grid, ("train", 1, 2), fail)
    with pytest.raises(FederationError, match=r"client 2: RuntimeError: out of luck"):
        grid.serve()


def words_as(change):
    def tamper(content):
        words = to_tensors(content.array_records["prototypes"])["words"]
        content["prototypes"] = to_arrays(change(words))

    return tamper


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda words: {"words": words[:-1]}, r"array 'words' has shape \[2, 7\], not \[3, 7\]"),
        (lambda words: {"words": words[:, :-1]}, r"has shape \[3, 6\]"),
        (lambda words: {"words": words.double()}, r"holds torch.float64, not torch.int64"),
        (lambda words: {"values": words}, r"expected the array 'words'"),
        (lambda words: {}, r"expected the array 'words', got \[\]"),
    ],
)
def test_malformed_records_are_refused_and_end_the_run(change, message, tiny, staged, tmp_path):
    grid = staged(tiny("fedproto", tmp_path, **ON, **{"run.min_success": 0.1}))
    grid.tamper["train", 1, 0] = words_as(change)
    with pytest.raises(FederationError, match=rf"client 0: ReplyError: .*{message}"):
        grid.serve()


@pytest.mark.parametrize("strategy", ["fedproto", "feddbp"])
def test_masks_that_do_not_cancel_are_found_in_the_totals(strategy, tiny, staged, tmp_path):
    grid = staged(tiny(strategy, tmp_path, **ON))
    rng = torch.Generator().manual_seed(0)

    def other_mask(words):
        chance = torch.randint(-(2**63), 2**63 - 1, words.shape, generator=rng)
        return {"words": chance}

    grid.tamper["train", 2, 0] = words_as(other_mask)
    with pytest.raises(FederationError, match=r"the sums of the weights .* did not cancel"):
        grid.serve()


def test_too_large_embeddings_end_the_run_by_name(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(masking, "SCALE", 2.0**62)
    with pytest.raises(FederationError, match=r"client 0: ReplyError: privacy\.masking: .* fit"):
        LocalGrid(tiny("fedproto", tmp_path, **ON)).serve()


def test_withheld_classes_and_noise_go_with_masks(tiny, staged, tmp_path, summary_of):
    noise = {
        "privacy.clip": 1.0,
        "privacy.noise_multiplier": 0.5,
        "privacy.noise": "seed",
        "privacy.min_support": 2,
        "strategy.feddbp.global_weight": "count",
        "strategy.feddbp.personal": "off",
    }
    values = {}
    for name, more in (("open", {}), ("masked", ON)):
        grid = staged(tiny("feddbp", tmp_path / name, **noise, **more))
        grid.serve()
        down = grid.sent["evaluate", 1, 0].content["prototypes"]
        values[name] = to_tensors(down)
    assert torch.equal(values["open"]["classes"], values["masked"]["classes"])
    torch.testing.assert_close(
        values["masked"]["values"], values["open"]["values"], rtol=1e-6, atol=1e-6
    )
    epsilons = [summary_of(tmp_path / name)["epsilon_if_noise_were_secret"] for name in values]
    assert epsilons[0] == epsilons[1]
    nothing = tiny("fedproto", tmp_path / "none", **ON, **{"privacy.min_support": 1000})
    grid = staged(nothing)
    grid.serve()
    assert not to_tensors(grid.sent["evaluate", 2, 0].content["prototypes"])["classes"].numel()


@pytest.mark.parametrize(
    ("strategy", "keys", "message"),
    [
        ("fedproto", {"strategy.fraction": 0.5}, r"strategy\.fraction = 0\.5 leaves some out"),
        ("fedproto", {"strategy.robust.rule": "median"}, "rule = 'median' compares single"),
        ("feddbp", {"strategy.robust.rule": "krum"}, "rule = 'krum' compares single"),
        ("fedproto", {"faults.drop": 0.1}, "10 % dropped a round"),
        ("fedproto", {"faults.lose": 0.1}, "replies lost"),
        ("fedproto", {"faults.partial": 0.1}, "partial"),
        ("fedproto", {"faults.stale": 0.1}, "stale"),
        ("fedproto", {"faults.hostile": 0.4}, "hostile"),
        ("fedtgp", {}, "'fedtgp' trains on single prototypes"),
        ("fedproto", {"run.compare": "fedtgp"}, "'fedtgp' trains on single prototypes"),
        ("feddbp", {"strategy.feddbp.personal": "similar"}, "personal = 'similar' compares"),
        ("feddbp", {"strategy.feddbp.fisher": "server"}, "fisher = 'server' trains on single"),
        ("feddbp", {"strategy.feddbp.fisher_floor": 1e-6}, "drown in the fixed point"),
        ("fedavg", {}, "'fedavg' sends other things"),
        ("fedproto", {"partition.clients": 1}, "over one client hides nothing"),
    ],
)
def test_what_sums_cannot_carry_is_refused(strategy, keys, message, tiny):
    with pytest.raises(ConfigError, match=message):
        tiny(strategy, **ON, **keys)
    tiny(strategy, **keys)  # it is the masks that it does not go with


@pytest.mark.parametrize("wrong", [1, 0, "true", 0.5])
def test_a_switch_is_true_or_false(wrong, tiny):
    with pytest.raises(ConfigError, match=r"privacy\.masking: must be true or false"):
        tiny("fedproto", **{"privacy.masking": wrong})


def test_local_training_has_nothing_to_mask(tiny, staged, tmp_path):
    assert tiny("fedproto", **ON, **{"run.compare": "local, feddbp"})
    grid = staged(tiny("local", tmp_path, **ON))
    grid.lost.add(("train", 1, 0))
    grid.serve()  # whoever is missing is nobody's loss
    assert "masking" not in grid.sent["train", 1, 1].content


def test_a_share_is_the_clients_part_of_the_sums(tiny):
    experiment = tiny("fedproto", **ON)
    upload = masked_prototypes.Upload(
        torch.tensor([2]), torch.full((1, 6), 0.5), torch.tensor([4]), torch.empty(0)
    )
    words = to_tensors(masked_prototypes.share(upload, torch.tensor([[4]]), experiment, 3))["words"]
    assert words[:2].eq(0).all()
    assert decode(words[2].numpy().view(np.uint64)).tolist() == [2.0] * 6 + [4.0]


def test_masks_survive_the_way_a_state_is_stored(tiny, staged, tmp_path):
    grid = staged(tiny("feddbp", tmp_path, **ON))
    grid.serve()
    state = grid.contexts[1].state
    again = from_bytes(to_bytes(state))
    assert again.config_records["masking"] == state.config_records["masking"]
    assert num_bytes(again) == num_bytes(state)
