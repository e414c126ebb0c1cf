"""Full rankings against a loop over users and items."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from graphcl.errors import GraphCLError
from graphcl.metrics.ranking import (
    ItemScores,
    SeenItems,
    dot_scores,
    group_ranks,
    hit_ratio,
    mrr,
    ndcg,
    rank_targets,
    top_k,
)

U, V = 9, 14
BLOCKS = (1, 3 * V + 1, 10**6)


def matrix_scores(matrix: Tensor) -> ItemScores:
    return ItemScores(matrix.__getitem__, *matrix.shape)


def csr(seen: list[list[int]]) -> SeenItems:
    lengths = torch.tensor([0] + [len(items) for items in seen])
    return SeenItems(lengths.cumsum(0), torch.tensor([i for items in seen for i in items]).long())


@pytest.fixture
def case() -> tuple[Tensor, Tensor, list[list[int]]]:
    """Scores of few distinct values, hence with ties; targets; items seen, some of them twice."""
    rng = torch.Generator().manual_seed(0)
    matrix = torch.randint(-3, 4, (U, V), generator=rng).float()
    matrix[:, 0] = 100
    target = torch.randint(1, V, (U,), generator=rng)
    seen = [torch.randint(0, V, (n,), generator=rng).tolist() for n in range(U)]
    seen[5] = [3, 3, 3, int(target[5])]
    seen[6] = list(range(V))
    return matrix, target, seen


def slow_ranks(matrix: Tensor, target: Tensor, seen: list[list[int]]) -> list[float]:
    ranks = []
    for user, own in enumerate(target.tolist()):
        rivals = [
            matrix[user, j].item() for j in range(1, matrix.shape[1]) if j not in {*seen[user], own}
        ]
        score = matrix[user, own].item()
        ranks.append(1 + sum(s > score for s in rivals) + sum(s == score for s in rivals) / 2)
    return ranks


def slow_top_k(
    matrix: Tensor, k: int, seen: list[list[int]]
) -> tuple[list[list[int]], list[list[float]]]:
    items, scores = [], []
    for user, row in enumerate(matrix.tolist()):
        left = [j for j in range(1, len(row)) if j not in seen[user]]
        best = sorted(left, key=lambda j: (-row[j], j))[:k]
        items.append(best + [0] * (k - len(best)))
        scores.append([row[j] for j in best] + [-math.inf] * (k - len(best)))
    return items, scores


@pytest.mark.parametrize("block", BLOCKS)
def test_ranks_are_those_of_a_loop(case, block):
    matrix, target, seen = case
    before = matrix.clone()
    ranks = rank_targets(matrix_scores(matrix), target, csr(seen), block=block)
    assert ranks.dtype == torch.float64
    assert ranks.tolist() == slow_ranks(matrix, target, seen)
    unmasked = rank_targets(matrix_scores(matrix), target, block=block)
    assert unmasked.tolist() == slow_ranks(matrix, target, [[]] * U)
    assert matrix.equal(before)


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("k", [1, 4, V, 3 * V])
def test_the_best_items_are_those_of_a_loop(case, block, k):
    matrix, _, seen = case
    before = matrix.clone()
    items, scores = top_k(matrix_scores(matrix), k, csr(seen), block=block)
    assert (items.tolist(), scores.tolist()) == slow_top_k(matrix, k, seen)
    items, scores = top_k(matrix_scores(matrix), k, block=block)
    assert (items.tolist(), scores.tolist()) == slow_top_k(matrix, k, [[]] * U)
    assert matrix.equal(before)


def test_of_tied_items_half_stand_before_the_target():
    alike = matrix_scores(torch.zeros(3, 12))
    ranks = rank_targets(alike, torch.tensor([1, 6, 11]))
    assert ranks.tolist() == [6.0] * 3
    assert hit_ratio(ranks, 5) == 0


def test_of_tied_items_the_smaller_number_is_recommended():
    items, _ = top_k(matrix_scores(torch.zeros(2, 5000)), 3)
    assert items.tolist() == [[1, 2, 3]] * 2


def test_a_user_who_has_seen_everything_ranks_the_target_first_and_is_recommended_nothing():
    scores = matrix_scores(torch.randn(1, 6))
    seen = csr([[0, 1, 2, 3, 4, 5]])
    assert rank_targets(scores, torch.tensor([4]), seen).tolist() == [1.0]
    items, values = top_k(scores, 2, seen)
    assert items.tolist() == [[0, 0]]
    assert values.tolist() == [[-math.inf] * 2]


def test_a_target_that_scores_minus_infinity_ties_with_nothing_that_is_masked():
    matrix = torch.tensor([[5.0, -torch.inf, 1.0, -torch.inf, 2.0]])
    ranks = rank_targets(matrix_scores(matrix), torch.tensor([1]), csr([[2]]))
    assert ranks.tolist() == [2.5]


def test_items_that_the_scores_rule_out_are_not_recommended():
    items, _ = top_k(matrix_scores(torch.tensor([[5.0, -torch.inf, 1.0]])), 2)
    assert items.tolist() == [[2, 0]]


def test_ranks_do_not_depend_on_the_order_of_the_items(case):
    matrix, target, seen = case
    order = torch.cat([torch.tensor([0]), 1 + torch.randperm(V - 1)])
    place = order.argsort()
    moved = csr([[int(place[i]) for i in items] for items in seen])
    ranks = rank_targets(matrix_scores(matrix[:, order]), place[target], moved)
    assert ranks.equal(rank_targets(matrix_scores(matrix), target, csr(seen)))


@pytest.mark.parametrize("block", BLOCKS)
def test_dot_scores_are_those_of_the_whole_product(case, block):
    _, target, seen = case
    hidden, items, bias = torch.randn(U, 5), torch.randn(V, 5), torch.randn(V)
    hidden.requires_grad_()
    scores = dot_scores(hidden, items, bias)
    whole = (hidden @ items.T + bias).detach()
    ranks = rank_targets(scores, target, csr(seen), block=block)
    assert ranks.tolist() == slow_ranks(whole, target, seen)
    best, values = top_k(scores, 4, csr(seen), block=block)
    assert best.tolist() == slow_top_k(whole, 4, seen)[0]
    assert not values.requires_grad


class LargestTensor(TorchDispatchMode):
    """Remembers the most bytes that any operation's output had."""

    def __init__(self) -> None:
        super().__init__()
        self.nbytes = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:  # the signature that torch calls
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, Tensor):
                # The storage, so that a view of a large tensor counts as large.
                self.nbytes = max(self.nbytes, tensor.untyped_storage().nbytes())
        return out


def test_a_million_items_are_ranked_for_64_users_in_blocks():
    users, items, block = 64, 1_000_000, 2**22
    rng = torch.Generator().manual_seed(0)
    hidden, table = torch.randn(users, 2, generator=rng), torch.randn(items, 2, generator=rng)
    target = torch.randint(1, items, (users,), generator=rng)
    seen = SeenItems(
        torch.arange(users + 1) * 5, torch.randint(1, items, (users * 5,), generator=rng)
    )
    scores = dot_scores(hidden, table)
    with LargestTensor() as largest:
        ranks = rank_targets(scores, target, seen, block=block)
        best, _ = top_k(scores, 10, seen, block=block)
    assert largest.nbytes <= 4 * block < 4 * users * items / 15
    whole = table @ hidden[7]
    whole[0] = whole[seen.indices[35:40]] = -torch.inf
    assert best[7].tolist() == whole.topk(10).indices.tolist()
    # Another order of sums may move what scores the same to the last digits.
    assert ranks[7].item() == pytest.approx(1 + (whole > whole[target[7]]).sum().item(), abs=2)


def test_however_few_items_there_are_few_users_are_read_together():
    scores = dot_scores(torch.randn(3000, 2), torch.randn(5, 2))
    sizes = [users.stop - users.start for users, _ in scores.blocks(2**22)]
    assert sum(sizes) == 3000
    assert max(sizes) == 1024


def test_metrics_are_those_of_a_loop():
    ranks = torch.tensor([1.0, 2.5, 10.0, 11.0, 400.0], dtype=torch.float64)
    assert hit_ratio(ranks, 10) == pytest.approx(3 / 5)
    gains = [1 / math.log2(r + 1) for r in (1.0, 2.5, 10.0)]
    assert ndcg(ranks, 10) == pytest.approx(sum(gains) / 5)
    assert mrr(ranks, 10) == pytest.approx((1 + 1 / 2.5 + 1 / 10) / 5)
    assert mrr(ranks) == pytest.approx((1 + 1 / 2.5 + 1 / 10 + 1 / 11 + 1 / 400) / 5)


@pytest.mark.parametrize("metric", [hit_ratio, ndcg, mrr])
def test_a_perfect_ranking_scores_one_and_a_hopeless_one_zero(metric):
    assert metric(torch.ones(4, dtype=torch.int64), 1) == 1
    assert metric(torch.full((4,), 7), 6) == 0


def test_groups_part_the_users_by_their_target():
    ranks, target = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([4, 1, 4])
    tail = torch.tensor([False, False, True, True, True])
    groups = group_ranks(ranks, target, {"tail": tail, "head": ~tail, "none": torch.zeros(5) > 0})
    assert {name: part.tolist() for name, part in groups.items()} == {
        "tail": [1.0, 3.0],
        "head": [2.0],
    }


def test_popularity_ranks_real_users_as_a_loop_does(data_root):
    with np.load(data_root / "recsys" / "amazon_beauty.npz", allow_pickle=False) as file:
        items, indptr = (
            torch.from_numpy(file[key].astype(np.int64)) for key in ("items", "indptr")
        )
    indptr = indptr[:4001]
    items = items[: indptr[-1]]
    last = indptr[1:] - 1
    held_out = torch.zeros(len(items), dtype=torch.bool).index_fill_(0, last, True)
    target, kept = items[last], items[~held_out]
    seen = SeenItems(indptr - torch.arange(len(indptr)), kept)
    count = kept.bincount(minlength=int(items.max()) + 1).float()
    scores = ItemScores(
        lambda users: count.expand(users.stop - users.start, -1), len(target), len(count)
    )
    ranks = rank_targets(scores, target, seen)
    some = range(0, len(target), 400)
    histories = [kept[seen.indptr[u] : seen.indptr[u + 1]].tolist() for u in some]
    expected = slow_ranks(count.expand(len(some), -1), target[list(some)], histories)
    assert ranks[list(some)].tolist() == expected
    # Popularity alone serves one or two users in a hundred.
    assert 0.005 < hit_ratio(ranks, 10) < 0.03


def test_scores_that_do_not_fit_or_are_not_numbers_are_refused():
    target = torch.ones(3).long()
    with pytest.raises(GraphCLError, match=r"users 0 to 2 has shape \[3, 4\].* floats \[3, 5\]"):
        rank_targets(ItemScores(torch.zeros(3, 4).__getitem__, 3, 5), target)
    with pytest.raises(GraphCLError, match=r"torch.int64"):
        rank_targets(matrix_scores(torch.zeros(3, 4).long()), target)
    matrix = torch.zeros(3, 4)
    matrix[2, 3] = torch.nan
    for block in (1, 100):
        with pytest.raises(GraphCLError, match="item 3 scores NaN for user 2"):
            rank_targets(matrix_scores(matrix), target, block=block)


SCORES = matrix_scores(torch.zeros(2, 5))
ONES = torch.ones(2).long()
RULES = {
    "target": (lambda: rank_targets(SCORES, torch.ones(3).long()), r"int64 \[2\]"),
    "type": (lambda: rank_targets(SCORES, torch.ones(2)), "target is torch.float32"),
    "padding": (lambda: rank_targets(SCORES, ONES * 0), r"target\[0\] is 0 \(2 such\)"),
    "high": (lambda: rank_targets(SCORES, ONES * 5), r"target\[0\] is 5 .* 1 to 4"),
    "block": (lambda: rank_targets(SCORES, ONES, block=0), "block is 0"),
    "k": (lambda: top_k(SCORES, 0), "top_k: k is 0"),
    "users": (lambda: top_k(SCORES, 1, csr([[1]])), "seen has 1 users and scores 2"),
    "seen": (lambda: top_k(SCORES, 1, csr([[1], [5]])), r"seen.indices\[1\] is 5"),
    "ends": (lambda: SeenItems(torch.tensor([0, 1]), ONES), r"begins and ends with \[0, 1\]"),
    "empty": (lambda: SeenItems(ONES[:0], ONES), r"begins and ends with \[\]"),
    "falls": (lambda: SeenItems(torch.tensor([0, 3, 2]), ONES), "falls after user 1"),
    "indices": (lambda: SeenItems(torch.tensor([0, 2]), torch.ones(2)), "indices is torch.float32"),
    "dot": (lambda: dot_scores(torch.ones(2, 3), torch.ones(5, 4)), r"hidden has shape \[2, 3\]"),
    "bias": (
        lambda: dot_scores(torch.ones(2, 3), torch.ones(5, 3), torch.ones(3)),
        r"bias has shape \[3\] for 5 items",
    ),
    "no rank": (lambda: ndcg(torch.ones(0), 10), "ndcg: there is no rank"),
    "from zero": (lambda: mrr(torch.tensor([1.0, 0.0])), r"ranks\[1\] is 0.0"),
    "nan": (lambda: hit_ratio(torch.tensor([math.nan]), 1), r"ranks\[0\] is nan"),
    "cut": (lambda: hit_ratio(torch.ones(1), 0), "hit_ratio: k is 0"),
    "pairs": (lambda: group_ranks(torch.ones(3), ONES, {}), r"ranks has shape \[3\]"),
    "mask": (lambda: group_ranks(torch.ones(2), ONES, {"tail": ONES}), "'tail' is torch.int64"),
    "short": (
        lambda: group_ranks(torch.ones(2), ONES, {"tail": ONES[:1] > 0}),
        r"target of group 'tail'\[0\] is 1",
    ),
}


@pytest.mark.parametrize("rule", RULES)
def test_bad_input_is_refused_by_name(rule):
    call, message = RULES[rule]
    with pytest.raises(GraphCLError, match=message):
        call()
