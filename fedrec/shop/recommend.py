"""Lists for a shop's shoppers, from a finished run: scored now, from everything the shop knows about them."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import sparse

from fedrec.errors import ConfigError, DataError
from fedrec.shop.explain import Reason, reasons
from fedrec.shop.served import ServedShop, open_shop, shop_names

_BLOCK_ROWS = 512


@dataclass(frozen=True)
class Recommendation:
    """One line of a shopper's list.

    Attributes:
        rank: 1 is best.
        item, title: of the shop's catalogue; title "" = unknown.
        score: the model's; comparable within one list only.
        because: what in her history speaks for it, strongest first; empty where the model cannot say.
    """

    rank: int
    item: str
    title: str
    score: float
    because: tuple[Reason, ...] = ()


def recommend(run_dir: str | Path, shop: str, shopper: str, n: int = 10) -> list[Recommendation]:
    """A shopper's best ``n`` items that she has not had, scored from her whole history.

    Args:
        run_dir: what ``fedrec simulate`` left.
        shop, shopper: ids as in the events.
        n: length of the list, at least 1; shorter where the catalogue has no more.
    Raises:
        ConfigError: ``n`` is not positive.
        DataError: the run has no such shop, or the shop no such shopper; the message names similar ones.
        StoreError: the run directory is not complete.
    """
    served = open_known_shop(Path(run_dir), shop)
    return recommend_from(served, shopper, n)


def open_known_shop(run_dir: Path, shop: str) -> ServedShop:
    """`fedrec.shop.served.open_shop` for a name that may be mistyped.

    Raises:
        DataError, StoreError: as `recommend`.
    """
    names = shop_names(run_dir)
    if shop not in names:
        raise DataError(f"there is no shop '{shop}' in {run_dir}{_similar(shop, names)}; there are {_first(names)}")
    return open_shop(run_dir, shop)


def recommend_from(served: ServedShop, shopper: str, n: int = 10) -> list[Recommendation]:
    """As `recommend`, from a shop that is already open."""
    _check_length(n)
    row = int(np.searchsorted(served.shoppers, shopper))
    if row == len(served.shoppers) or served.shoppers[row] != shopper:
        similar = _similar(shopper, served.shoppers.tolist())
        raise DataError(
            f"shop '{served.name}' has no shopper '{shopper}'{similar}; it has {len(served.shoppers):,}, "
            f"such as {_first(served.shoppers.tolist(), 3)}"
        )
    history = _histories(served)[row]
    items, scores = _best(served, history, n)
    bought = history.indices.astype(np.int64)
    return [
        Recommendation(
            rank=place + 1,
            item=str(served.items[item]),
            title=str(served.titles[item]),
            score=float(score),
            because=reasons(served.scorer, bought, int(item), items=served.items, titles=served.titles),
        )
        for place, (item, score) in enumerate(zip(items[0], scores[0], strict=True))
        if item >= 0
    ]


def recommend_all(run_dir: str | Path, n: int = 10, *, shop: str | None = None) -> Iterator[pd.DataFrame]:
    """Lists of every shopper, one table for each shop: for campaigns.

    Args:
        run_dir: what ``fedrec simulate`` left.
        n: length of each list.
        shop: only this one; None = all, by name.
    Yields:
        columns ``shop``, ``shopper``, ``rank`` (int32), ``item``, ``title``, ``score`` (float32).
    Raises:
        ConfigError, DataError, StoreError: as `recommend`.
    """
    _check_length(n)
    run_dir = Path(run_dir)
    for name in [shop] if shop is not None else shop_names(run_dir):
        served = open_known_shop(run_dir, name)
        histories = _histories(served)
        tables = []
        for start in range(0, histories.shape[0], _BLOCK_ROWS):
            items, scores = _best(served, histories[start : start + _BLOCK_ROWS], n)
            rows, places = np.nonzero(items >= 0)
            tables.append(_table(served, rows + start, places, items[rows, places], scores[rows, places]))
        yield pd.concat(tables, ignore_index=True)


def _table(
    served: ServedShop, rows: np.ndarray, places: np.ndarray, items: np.ndarray, scores: np.ndarray
) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "shop": np.full(len(rows), served.name, dtype=object),
            "shopper": served.shoppers[rows],
            "rank": (places + 1).astype(np.int32),
            "item": served.items[items],
            "title": served.titles[items],
            "score": scores.astype(np.float32),
        }
    )


def _histories(served: ServedShop) -> sparse.csr_matrix:
    """float32 CSR, (num_shoppers, num_items): 1 for everything that each shopper had, test events too."""
    everything = (served.known + served.tested).tocsr()
    everything.sum_duplicates()
    everything.data.fill(1.0)
    return everything


def _best(served: ServedShop, histories: sparse.csr_matrix, n: int) -> tuple[np.ndarray, np.ndarray]:
    """int64 and float32, (num_rows, min(n, num_items)): best new items, -1 where the catalogue has no more."""
    scores = np.array(served.scorer.scores(histories), dtype=np.float32)
    rows = np.repeat(np.arange(histories.shape[0]), np.diff(histories.indptr))
    scores[rows, histories.indices] = -np.inf
    order = np.argsort(-scores, axis=1, kind="stable")[:, :n]
    best = np.take_along_axis(scores, order, axis=1)
    return np.where(np.isfinite(best), order, -1), best


def _check_length(n: int) -> None:
    if not n >= 1:
        raise ConfigError(f"n = {n}: a list needs at least 1 item")


def _similar(name: str, known: list[str]) -> str:
    matches = difflib.get_close_matches(name, known[:50_000], n=3, cutoff=0.6)
    return f" (did you mean {' or '.join(matches)}?)" if matches else ""


def _first(names: list[str], limit: int = 12) -> str:
    more = f" and {len(names) - limit:,} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
