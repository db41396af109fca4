"""Ways to divide one table of shoppers into shops; `fedrec.data.shops.assign` says what each rule means."""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy import sparse

from fedrec.data.events import Events
from fedrec.data.histories import codes_of, name_keys, rank_within
from fedrec.data.items import Items
from fedrec.errors import DataError

UNCATEGORISED = "uncategorised"
"""The shop of items without a category, under the rule ``category``."""

_NUM_CLUSTERS = 16


def divide(keys: np.ndarray, is_present: np.ndarray, num_shops: int) -> np.ndarray:
    """int32, one shop for each shopper name: equal shares in the order of the seeded keys."""
    order = np.argsort(np.where(is_present, keys, np.uint64(2**64 - 1)), kind="stable")
    count = int(is_present.sum())
    shop_of = np.zeros(len(keys), np.int32)
    shop_of[order[:count]] = np.arange(count, dtype=np.int64) * num_shops // count
    return shop_of


def divide_skewed(
    keys: np.ndarray, groups: np.ndarray, is_present: np.ndarray, num_shops: int, alpha: float, seed: int
) -> np.ndarray:
    """int32, one shop for each shopper name: each group's shoppers cut by a Dirichlet draw of its own."""
    num_groups = int(groups.max()) + 1
    shares = np.random.default_rng([seed, 1]).dirichlet(np.full(num_shops, alpha), size=num_groups)
    present = np.flatnonzero(is_present)
    rank, sizes = rank_within(groups[present], keys[present], num_groups)
    quantile = (rank + 0.5) / sizes[groups[present]]
    ends = np.cumsum(shares, axis=1)  # (num_groups, num_shops)
    shop = np.zeros(len(present), np.int64)
    for end in ends[:, :-1].T:
        shop += quantile >= end[groups[present]]
    order = np.argsort(keys[present], kind="stable")
    for empty in np.flatnonzero(np.bincount(shop, minlength=num_shops) == 0):
        largest = np.bincount(shop, minlength=num_shops).argmax()
        shop[order[np.flatnonzero(shop[order] == largest)[0]]] = empty
    shop_of = np.zeros(len(keys), np.int32)
    shop_of[present] = shop
    return shop_of


def _first_categories(events: Events, items: Items | None) -> tuple[np.ndarray, np.ndarray] | None:
    """Each event's first category as int32 codes (-1 = unknown) and sorted names; None where nothing is known."""
    codes = np.full(len(events), -1, np.int64)
    labels = pd.Series([], dtype="str")
    if items is not None and "category" in items.table:
        item, names = codes_of(events, "item")
        labels = items.table["category"].reindex(names).fillna("").astype("str")
        codes = item.astype(np.int64)
    elif "category" in events.table:
        column = events.table["category"].astype("category")
        labels = pd.Series(column.cat.categories.astype(str), dtype="str")
        codes = column.cat.codes.to_numpy().astype(np.int64)
    first = labels.str.split("|").str[0].str.strip().fillna("").to_numpy(dtype=object)
    names, place = np.unique(np.append(first, "").astype(object), return_inverse=True)
    place -= names[0] == ""  # "" sorts first: unknown becomes -1
    names = names[names != ""]
    found = place[codes]
    return (found.astype(np.int32), names) if (found >= 0).any() else None


def by_category(events: Events, items: Items | None) -> tuple[np.ndarray, np.ndarray]:
    """Shop codes and names under the rule ``category``."""
    found = _first_categories(events, items) or _first_categories(events, None)
    if found is None:
        raise DataError("the rule 'category' needs item categories; give them with --items or a category column")
    codes, names = found
    if (codes < 0).any():
        if UNCATEGORISED in names:
            other = int(np.flatnonzero(names == UNCATEGORISED)[0])
        else:
            names, other = np.append(names, UNCATEGORISED), len(names)
        codes = np.where(codes < 0, other, codes)
    return codes, names


def taste_groups(events: Events, items: Items | None, shopper: np.ndarray, num_shoppers: int, seed: int) -> np.ndarray:
    """int64, (num_shopper_names,): each shopper's group by main category, else by cluster of what she bought."""
    found = _first_categories(events, items) or _first_categories(events, None)
    if found is not None and len(found[1]) > 1:
        codes, names = found
        is_known = codes >= 0
        counts = sparse.csr_matrix(
            (np.ones(int(is_known.sum())), (shopper[is_known], codes[is_known])),
            shape=(num_shoppers, len(names)),
        )
        return np.asarray(counts.argmax(axis=1)).ravel().astype(np.int64)
    item, item_names = codes_of(events, "item")
    bought = sparse.csr_matrix((np.ones(len(item)), (shopper, item)), shape=(num_shoppers, len(item_names)))
    bought.data.fill(1.0)
    return _clusters(bought, name_keys(item_names, seed), seed)


def _clusters(bought: sparse.csr_matrix, item_keys: np.ndarray, seed: int) -> np.ndarray:
    """int64, (num_rows,): k-means clusters of rows by direction in a low-rank space (subspace iteration)."""
    rank = min(_NUM_CLUSTERS // 2, *bought.shape)
    weights = sparse.diags(1 / np.sqrt(np.maximum(np.asarray(bought.sum(axis=0)).ravel(), 1.0)))
    scaled = bought @ weights
    start = np.stack([name_keys(item_keys.astype(str), seed + column) for column in range(rank)], axis=1)
    basis = start / 2.0**63 - 1.0
    for _ in range(4):
        basis = np.linalg.qr(scaled.T @ (scaled @ basis))[0]
    points = scaled @ basis
    points /= np.maximum(np.linalg.norm(points, axis=1, keepdims=True), 1e-12)
    spread = np.linspace(0, len(points) - 1, _NUM_CLUSTERS).astype(int)
    centres = points[np.lexsort(points.T)[spread]]
    for _ in range(10):
        cluster = (points @ centres.T).argmax(axis=1)
        member = sparse.csr_matrix(
            (np.ones(len(points)), (cluster, np.arange(len(points)))), (len(centres), len(points))
        )
        centres = member @ points
        centres /= np.maximum(np.linalg.norm(centres, axis=1, keepdims=True), 1e-12)
    return cluster
