"""Embeddings of what is known of items: by any model of texts, or from words and attributes."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from scipy import sparse
from threadpoolctl import threadpool_limits

from graphcl.datasets.arrays import as_floats
from graphcl.datasets.interactions import Interactions
from graphcl.errors import DataError

Embedder = Callable[[list[str]], Any]

_SMALLEST = 1e-6  # part of the largest singular value: what is below is rounding


def embed_texts(
    interactions: Interactions,
    embedder: Embedder | None = None,
    *,
    channels: int = 256,
    seed: int = 0,
) -> Interactions:
    """Return the interactions with ``text``, one vector for each item.

    Without an embedder an item is the bag of the words of its title, its category and its
    attributes, of which what is there is taken; the bags are weighted by TF-IDF and projected on
    their first singular vectors.  An item of which nothing is known has a row of zeros.

    Args:
        interactions: With ``title`` for an embedder; without one with ``title``, ``category`` or
            ``attribute``.
        embedder: From the titles of items 1 to num_items to one vector each, an array or tensor
            ``[num_items, D]``, such as the ``encode`` of a model of sentence-transformers.
        channels: Singular vectors, without an embedder; fewer if the bags span fewer dimensions.
        seed: Of the decomposition; same seed, same vectors.

    Raises:
        DataError: Nothing is known of the items, or the embedder returns another shape or a number
            that is not finite.

    Source:
        Deerwester et al., Indexing by Latent Semantic Analysis, JASIS 41, 1990.

    Example:
        .. code-block:: python

            from sentence_transformers import SentenceTransformer

            model = SentenceTransformer("all-MiniLM-L6-v2")
            interactions = embed_texts(interactions, model.encode)
    """
    interactions.validate()
    if embedder is not None:
        vectors = _by_embedder(interactions, embedder)
    elif channels < 1:
        raise DataError(f"embed_texts: channels is {channels}, must be at least 1")
    else:
        vectors = _by_svd(_bags(interactions), channels, seed)
    text = np.concatenate([np.zeros_like(vectors[:1]), vectors])
    return replace(interactions, text=torch.from_numpy(text)).validate()


def _by_embedder(interactions: Interactions, embedder: Embedder) -> np.ndarray:
    if interactions.title is None:
        raise DataError(
            f"{interactions.name}: the items have no title for the embedder: give title, or leave "
            "the embedder out to use category and attribute"
        )
    found = embedder(list(interactions.title[1:]))
    values = found.detach().cpu().numpy() if isinstance(found, torch.Tensor) else found
    vectors = as_floats(np.asarray(values), "embed_texts: what the embedder returns")
    if vectors.ndim != 2 or len(vectors) != interactions.num_items or not vectors.shape[1]:
        raise DataError(
            f"embed_texts: the embedder returns shape {vectors.shape} for {interactions.num_items} "
            f"titles, must return ({interactions.num_items}, D)"
        )
    bad = np.argwhere(~np.isfinite(vectors))
    if len(bad):
        row, column = bad[0]
        raise DataError(
            f"embed_texts: the embedder returns {vectors[row, column]} at [{row}, {column}] "
            f"({len(bad)} such), for the title {interactions.title[row + 1]!r}: return finite "
            "numbers, zeros for an empty title"
        )
    return vectors


def _bags(interactions: Interactions) -> sparse.csr_matrix:
    """Return how often each item, from item 1, has each term, ``[num_items, terms]``."""
    from sklearn.feature_extraction.text import CountVectorizer

    n = interactions.num_items
    parts = []
    if interactions.title is not None and any(map(str.isalnum, "".join(interactions.title))):
        # One letter may be a word: what is frequent weighs little anyway.
        words = CountVectorizer(token_pattern=r"(?u)\w+")  # noqa: S106
        parts.append(words.fit_transform(interactions.title[1:]))
    if interactions.category is not None:
        category = interactions.category[1:].numpy()
        item = category.nonzero()[0]
        parts.append(_incidence(item, category[item], n))
    attribute, bounds = interactions.attribute, interactions.attribute_indptr
    if attribute is not None and bounds is not None:
        parts.append(_incidence(np.repeat(np.arange(n), bounds[1:].diff()), attribute.numpy(), n))
    bags = sparse.hstack(parts, format="csr") if parts else sparse.csr_matrix((n, 0))
    if not bags.nnz:
        raise DataError(
            f"{interactions.name}: nothing is known of the items: give title, category or "
            "attribute, or text of your own"
        )
    return bags


def _incidence(item: np.ndarray, term: np.ndarray, num_items: int) -> sparse.csr_matrix:
    """Return 1 where an item has a term, once or several times."""
    terms, column = np.unique(term, return_inverse=True)
    shape = (num_items, len(terms))
    return sparse.csr_matrix((np.ones(len(item)), (item, column)), shape).sign()


def _by_svd(bags: sparse.csr_matrix, channels: int, seed: int) -> np.ndarray:
    """Return the rows of the bags in the space of their first singular vectors, float32."""
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfTransformer

    weighted = TfidfTransformer().fit_transform(bags)
    svd = TruncatedSVD(min(channels, *bags.shape), random_state=seed)
    with threadpool_limits(1):  # their number decides the order of sums
        vectors = svd.fit_transform(weighted)
    values = svd.singular_values_
    return vectors[:, values > _SMALLEST * values.max()].astype(np.float32)
