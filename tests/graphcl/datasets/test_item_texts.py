"""Embeddings of items from titles, categories and attributes, or by a function of titles."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_interactions import make, same
from threadpoolctl import threadpool_limits

from graphcl.datasets import Interactions, embed_texts, load_interactions
from graphcl.errors import DataError

TITLES = ("", "Green tea", "Green TEA, organic!", "Cup", "Blue cup", "")


def known(**fields: Any) -> Interactions:
    """Return interactions of five items of which only this is known."""
    nothing = dict.fromkeys(("text", "title", "category", "category_name"))
    return make(**{**nothing, "attribute": None, "attribute_indptr": None, **fields})


def attributes(*items: list[int]) -> dict[str, torch.Tensor]:
    bounds = np.cumsum([0, 0, *map(len, items)])
    return {
        "attribute": torch.tensor([a for item in items for a in item], dtype=torch.int64),
        "attribute_indptr": torch.from_numpy(bounds),
    }


def products(interactions: Interactions) -> torch.Tensor:
    """Return the inner products of the embeddings, which no rotation changes."""
    text = interactions.text
    assert text is not None
    return text.double() @ text.double().T


def slow_products(bags: list[list[str]]) -> torch.Tensor:
    """Return those of TF-IDF vectors of length 1, with the smoothed logarithm of scikit-learn."""
    terms = sorted({term for bag in bags for term in bag})
    counts = torch.tensor([[bag.count(term) for term in terms] for bag in bags]).double()
    weighted = counts * (((1 + len(bags)) / (1 + (counts > 0).sum(0))).log() + 1)
    unit = weighted / weighted.norm(dim=1, keepdim=True).clamp(min=1e-30)
    return unit @ unit.T


def test_words_are_weighted_by_tf_idf_and_nothing_is_lost_if_all_channels_are_kept() -> None:
    bags = [["green", "tea"], ["green", "tea", "organic"], ["cup"], ["blue", "cup"], []]
    found = products(embed_texts(known(title=TITLES)))
    assert torch.allclose(found[1:, 1:], slow_products(bags), atol=1e-6)


def test_words_categories_and_attributes_are_terms_of_one_bag() -> None:
    fields = attributes([3, 900], [3], [], [7, 3, 7], [900])
    interactions = known(
        title=TITLES,
        category=torch.tensor([0, 1, 1, 2, 2, 0]),
        category_name=("", "tea", "cup"),
        **fields,
    )
    bags = [
        ["green", "tea", "category 1", "3", "900"],
        ["green", "tea", "organic", "category 1", "3"],
        ["cup", "category 2"],
        ["blue", "cup", "category 2", "7", "3"],  # an item has an attribute or not
        ["900"],
    ]
    assert torch.allclose(
        products(embed_texts(interactions))[1:, 1:], slow_products(bags), atol=1e-6
    )


def test_of_few_channels_the_first_remain_and_rank_bounds_them() -> None:
    interactions = known(**attributes([1, 2], [1, 2], [3], [3], [4, 5]))
    whole = embed_texts(interactions).text
    assert whole is not None
    assert whole.shape == (6, 3)
    two = embed_texts(interactions, channels=2).text
    assert two is not None
    assert torch.allclose(two.abs(), whole[:, :2].abs(), atol=1e-6)


def test_the_seed_decides_the_vectors_and_the_rest_stays() -> None:
    interactions = known(**attributes([1, 2], [2, 4], [3, 4], [3], [4, 5]))
    one, two = (embed_texts(interactions, channels=3, seed=4) for _ in range(2))
    assert same(one, two)
    assert same(replace(one, text=None), interactions)


def test_padding_and_items_of_which_nothing_is_known_are_zero() -> None:
    text = embed_texts(known(title=TITLES)).text
    assert text is not None
    assert text.any(1).tolist() == [False, True, True, True, True, False]


@pytest.mark.parametrize("kind", [np.asarray, torch.tensor, list])
def test_an_embedder_gets_the_titles_and_its_vectors_are_kept(kind: Callable[..., Any]) -> None:
    asked: list[list[str]] = []

    def embedder(titles: list[str]) -> Any:
        asked.append(titles)
        return kind([[len(title), 0.5] for title in titles])

    text = embed_texts(known(title=TITLES), embedder).text
    assert asked == [list(TITLES[1:])]
    assert text is not None
    assert text.tolist() == [[0, 0], *([len(title), 0.5] for title in TITLES[1:])]
    assert text.dtype == torch.float32


RETURNS = {
    "one short": (np.zeros((4, 2)), r"returns shape \(4, 2\) for 5 titles, must return \(5, D\)"),
    "flat": (np.zeros(5), r"returns shape \(5,\) for 5 titles"),
    "empty": (np.zeros((5, 0)), r"returns shape \(5, 0\) for 5 titles"),
    "NaN": (
        np.where(np.arange(10).reshape(5, 2) == 3, np.nan, 0),
        r"returns nan at \[1, 1\] \(1 such\), for the title 'Green TEA, organic!': return finite",
    ),
    "names": (np.array([["a"]] * 5), "what the embedder returns is <U1, must be real"),
}


@pytest.mark.parametrize("fault", RETURNS)
def test_what_an_embedder_must_not_return_is_named(fault: str) -> None:
    values, message = RETURNS[fault]
    with pytest.raises(DataError, match=message):
        embed_texts(known(title=TITLES), lambda _: values)


def test_items_of_which_nothing_is_known_are_refused() -> None:
    with pytest.raises(DataError, match=r"^shop: nothing is known of the items: give title"):
        embed_texts(known())
    with pytest.raises(DataError, match="nothing is known of the items"):
        embed_texts(known(title=("", "!", "", "?", "", ""), **attributes([], [], [], [], [])))
    with pytest.raises(DataError, match=r"^shop: the items have no title for the embedder"):
        embed_texts(known(**attributes([1], [], [], [], [])), lambda titles: titles)
    with pytest.raises(DataError, match="channels is 0, must be at least 1"):
        embed_texts(known(title=TITLES), channels=0)


def test_attributes_of_a_real_shop_tell_which_items_are_taken_by_one_user(data_root: Path) -> None:
    names = {"attribute": "attr_indices", "attribute_indptr": "attr_indptr"}
    shop = embed_texts(
        load_interactions(data_root / "recsys" / "amazon_beauty.npz", names=names), channels=32
    )
    assert shop.text is not None
    assert shop.text.shape == (12_102, 32)
    unit = torch.nn.functional.normalize(shop.text)
    same_user = (unit[shop.item[1:]] * unit[shop.item[:-1]]).sum(1)[shop.user.diff() == 0].mean()
    rng = torch.Generator().manual_seed(0)
    anybody = (unit[shop.item] * unit[shop.item[torch.randperm(len(shop), generator=rng)]]).sum(1)
    assert same_user > anybody.mean() + 0.15


def test_the_number_of_threads_does_not_enter_the_vectors() -> None:
    rng = np.random.default_rng(0)
    bags = [rng.choice(500, size=6, replace=False).tolist() for _ in range(3000)]
    many = known(num_items=len(bags), item_name=None, **attributes(*bags))
    found = []
    for threads in (1, 2):
        with threadpool_limits(threads):
            found.append(embed_texts(many).text)
    assert torch.equal(*found)
