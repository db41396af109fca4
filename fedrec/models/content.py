"""Public item content as numbers, one row per item: words of titles, categories, the year, and crosses.

Kinds of content are *blocks* of columns. Each block's rows have norm 1, so that the similarity of two items is the mean
over the blocks. Crosses (pairs of categories, category and year) say what neither side says alone: two items alike in
both are more alike than the sum.

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
_YEAR = re.compile(r"\((1[89]\d\d|20\d\d)\)\s*$")
_YEARS_PER_KNOT = 10.0


@dataclass(frozen=True)
class ContentSettings:
    """How titles and categories become features.

    Attributes:
        min_items: a title word must occur in at least this many items; rarer words connect nothing.
        max_share: a title word in more than this share of the items says nothing and is dropped; in (0, 1].
        max_words: at most this many title words, those in most items first.
        category_weight: weight of the category block against the title block, before rows are normalised; >= 0, and
            0 leaves categories out.
        has_crosses: adds pairs of categories, the year in brackets at the end of most titles, and the year crossed with
            categories (with words, where there are none).
    """

    min_items: int = 2
    max_share: float = 0.5
    max_words: int = 5000
    category_weight: float = 1.0
    has_crosses: bool = True

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
    titles: Iterable[str],
    categories: Iterable[str],
    *,
    settings: ContentSettings | None = None,
) -> sparse.csr_matrix | None:
    """TF-IDF of title words beside one-hot categories, their pairs, the year, and crosses with it.

    Args:
        titles: one per item; "" or a missing value = unknown.
        categories: one per item, several joined by "|"; "" or a missing value = unknown.
        settings: defaults of `ContentSettings`.
    Returns:
        float32 CSR, (num_items, num_features): rows of norm 1, empty where nothing is known; None if nothing is known
        of any item. Columns: words in alphabetical order, categories in alphabetical order, then crosses.
    Raises:
        DataError: titles and categories differ in number.
    """
    settings = settings or ContentSettings()
    texts = _texts(titles)
    labels = [[part.strip() for part in text.split("|") if part.strip()] for text in _texts(categories)]
    if len(texts) != len(labels):
        raise DataError(f"{len(texts)} titles but {len(labels)} categories: give one of each per item")
    words = _unit_rows(_tf_idf([_WORD.findall(text.lower()) for text in texts], settings))
    one_hot = _counts(labels)[0]
    one_hot.data[:] = 1
    one_hot = _unit_rows(one_hot) if settings.category_weight > 0 else one_hot[:, :0]
    blocks = [words, one_hot * settings.category_weight]
    if settings.has_crosses:
        blocks += _crosses(texts, words, one_hot, settings)
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


def _crosses(
    texts: Sequence[str],
    words: sparse.csr_matrix,
    categories: sparse.csr_matrix,
    settings: ContentSettings,
) -> list[sparse.csr_matrix]:
    """Pairs of categories, the year in soft bins, and the year with categories or words."""
    crosses = []
    if np.diff(categories.indptr).max(initial=0) > 1:
        crosses.append(_crossed(categories, categories, settings) * settings.category_weight)
    years = _years(texts)
    if years is None:
        return crosses
    bins = _soft_bins(years / _YEARS_PER_KNOT)
    if categories.nnz:
        return [*crosses, bins, _crossed(categories, bins, settings) * settings.category_weight]
    return [*crosses, bins, _crossed(words, bins, settings)]


def _years(texts: Sequence[str]) -> np.ndarray | None:
    """Each item's year, NaN = unknown; None unless most titles end in one."""
    found = [_YEAR.search(text) for text in texts]
    years = np.array([float(match.group(1)) if match else np.nan for match in found], np.float64)
    return years if np.count_nonzero(np.isfinite(years)) > 0.5 * len(texts) else None


def _soft_bins(numbers: np.ndarray) -> sparse.csr_matrix:
    """Each number as weights on the two whole numbers beside it, by nearness, rows of norm 1; NaN = an empty row."""
    known = np.flatnonzero(np.isfinite(numbers))
    below = np.floor(numbers[known]).astype(np.int64)
    share = numbers[known] - below
    first = int(below.min())
    width = int(below.max()) - first + 2
    rows = np.concatenate([known, known])
    columns = np.concatenate([below, below + 1]) - first
    cells = (np.concatenate([1 - share, share]), (rows, columns))
    bins = sparse.csr_matrix(cells, shape=(len(numbers), width))
    bins.eliminate_zeros()
    return _unit_rows(bins)


def _crossed(left: sparse.csr_matrix, right: sparse.csr_matrix, settings: ContentSettings) -> sparse.csr_matrix:
    """All products of a left and a right column, row by row: similarities multiply. Columns of too few items go."""
    num_items = left.shape[0]
    left_row = np.repeat(np.arange(num_items), np.diff(left.indptr))
    repeats = np.diff(right.indptr)[left_row]
    cell = np.repeat(np.arange(left.nnz), repeats)
    starts = np.cumsum(repeats) - repeats
    other = np.arange(len(cell)) - np.repeat(starts, repeats) + np.repeat(right.indptr[left_row], repeats)
    columns = left.indices[cell].astype(np.int64) * max(right.shape[1], 1) + right.indices[other]
    values = left.data[cell] * right.data[other]
    distinct, place, counts = np.unique(columns, return_inverse=True, return_counts=True)
    new_place = np.cumsum(counts >= settings.min_items) - 1
    is_kept = (counts >= settings.min_items)[place]
    kept = (values[is_kept], (left_row[cell][is_kept], new_place[place[is_kept]]))
    num_columns = int(np.count_nonzero(counts >= settings.min_items)) if len(distinct) else 0
    return sparse.csr_matrix(kept, shape=(num_items, num_columns))


def _unit_rows(features: sparse.csr_matrix) -> sparse.csr_matrix:
    """Rows scaled to norm 1; empty rows stay empty."""
    norms = np.sqrt(np.asarray(features.multiply(features).sum(axis=1)).ravel())
    return (sparse.diags(1 / np.where(norms > 0, norms, 1)) @ features).tocsr()
