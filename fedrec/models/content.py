"""Public item content as numbers: words of titles and categories, one row per item.

Everything here is computed over the *declared public catalogue*, never from events, so it costs no privacy.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import sparse

from fedrec.errors import ConfigError, DataError

_WORD = re.compile(r"[^\W_]{2,}")


@dataclass(frozen=True)
class ContentSettings:
    """How titles and categories become features.

    Attributes:
        min_items: a title word must occur in at least this many items; rarer words connect nothing.
        max_share: a title word in more than this share of the items says nothing and is dropped; in (0, 1].
        max_words: at most this many title words, those in most items first.
        category_weight: weight of the category block against the title block, before rows are normalised; >= 0, and
            0 leaves categories out.
    """

    min_items: int = 2
    max_share: float = 0.5
    max_words: int = 5000
    category_weight: float = 1.0

    def __post_init__(self) -> None:
        if not self.min_items >= 1:
            raise ConfigError(f"min_items = {self.min_items}: give a whole number of at least 1")
        if not 0 < self.max_share <= 1:
            raise ConfigError(f"max_share = {self.max_share}: give a share above 0 and at most 1")
        if not self.max_words >= 1:
            raise ConfigError(f"max_words = {self.max_words}: give a whole number of at least 1")
        if not 0 <= self.category_weight < np.inf:
            raise ConfigError(f"category_weight = {self.category_weight}: give a number of at least 0")


def content_features(
    titles: Iterable[str], categories: Iterable[str], *, settings: ContentSettings | None = None
) -> sparse.csr_matrix | None:
    """TF-IDF of title words beside one-hot categories.

    Args:
        titles: one per item; "" or a missing value = unknown.
        categories: one per item, several joined by "|"; "" or a missing value = unknown.
        settings: defaults of `ContentSettings`.
    Returns:
        float32 CSR, (num_items, num_features): rows of norm 1, empty where nothing is known; None if nothing is known
        of any item. Columns: words in alphabetical order, then categories in alphabetical order.
    Raises:
        DataError: titles and categories differ in number.
    """
    settings = settings or ContentSettings()
    words = [_WORD.findall(text.lower()) for text in _texts(titles)]
    labels = [[part.strip() for part in text.split("|") if part.strip()] for text in _texts(categories)]
    if len(words) != len(labels):
        raise DataError(f"{len(words)} titles but {len(labels)} categories: give one of each per item")
    blocks = [_unit_rows(_tf_idf(words, settings))]
    if settings.category_weight > 0:
        one_hot = _counts(labels)[0]
        one_hot.data[:] = 1
        blocks.append(_unit_rows(one_hot) * settings.category_weight)
    features = _unit_rows(sparse.hstack(blocks, format="csr"))
    if features.nnz == 0:
        return None
    features.sort_indices()
    return features.astype(np.float32)


def _texts(cells: Iterable[str]) -> list[str]:
    return [cell if isinstance(cell, str) else "" for cell in cells]


def _counts(documents: Sequence[Sequence[str]]) -> tuple[sparse.csr_matrix, list[str]]:
    """How often each term occurs in each document, float64 (num_documents, num_terms), and the terms in order."""
    terms = sorted({term for document in documents for term in document})
    column = {term: place for place, term in enumerate(terms)}
    columns = np.array([column[term] for document in documents for term in document], dtype=np.int64)
    rows = np.repeat(np.arange(len(documents)), [len(document) for document in documents])
    shape = (len(documents), len(terms))
    return sparse.csr_matrix((np.ones(len(columns)), (rows, columns)), shape=shape), terms


def _tf_idf(words: Sequence[Sequence[str]], settings: ContentSettings) -> sparse.csr_matrix:
    """(1 + log tf) * (1 + log((1 + n) / (1 + df))) of the words within the limits, float64 CSR."""
    counts, _ = _counts(words)
    num_items = counts.shape[0]
    num_with_word = np.bincount(counts.indices, minlength=counts.shape[1])
    is_kept = (num_with_word >= settings.min_items) & (num_with_word <= settings.max_share * num_items)
    kept = np.flatnonzero(is_kept)
    if len(kept) > settings.max_words:
        kept = np.sort(kept[np.argsort(-num_with_word[kept], kind="stable")[: settings.max_words]])
    counts = counts[:, kept]
    counts.data = 1 + np.log(counts.data)
    rarity = 1 + np.log((1 + num_items) / (1 + num_with_word[kept]))
    return (counts @ sparse.diags(rarity)).tocsr()


def _unit_rows(features: sparse.csr_matrix) -> sparse.csr_matrix:
    """Rows scaled to norm 1; empty rows stay empty."""
    norms = np.sqrt(np.asarray(features.multiply(features).sum(axis=1)).ravel())
    return (sparse.diags(1 / np.where(norms > 0, norms, 1)) @ features).tocsr()
