"""From a scenario's data settings to what a comparison runs on: shops, public inputs, and the two stages of a run."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import numpy as np
from scipy import sparse

from fedrec.config import SimulationSettings
from fedrec.data import shops as shop_rules
from fedrec.data import sources
from fedrec.data import split as splits
from fedrec.data.events import Events
from fedrec.data.items import Items
from fedrec.data.shops import ShopData
from fedrec.data.sources import Loaded
from fedrec.data.split import Split, SplitKind
from fedrec.errors import DataError
from fedrec.models.content import content_features
from fedrec.models.recommender import LocalModel, PublicInputs, Recommender, State, train_alone
from fedrec.models.whole_space import WholeSpace
from fedrec.shop.personalise import is_too_small

_KEPT_BYTES = 2**30
"""Of trained networks that `train_once` keeps; the oldest go first."""


class Stage(StrEnum):
    """What a model is for: choosing settings on validation, or the figures on test."""

    CHOOSE = "choose"
    FINAL = "final"


@dataclass(frozen=True)
class Queries:
    """The shoppers of one shop whose lists are scored.

    Attributes:
        rows: int64, (num_queries,); rows of the shop's matrices.
        known: float32 CSR, (num_queries, num_shop_items): what is known of each and may not be recommended.
        targets: float32 CSR, same shape: what should be found.
        missing: int64, (num_queries,): targets that the shop's catalogue does not hold.
    """

    rows: np.ndarray
    known: sparse.csr_matrix
    targets: sparse.csr_matrix
    missing: np.ndarray


@dataclass(frozen=True)
class World:
    """All that the columns of one comparison share.

    Attributes:
        items: the whole catalogue, with text.
        public: the federation's shared item space.
        shops: in roster order (sorted by name).
        shop_public: each shop's own item space, same order.
        split: events and their parts.
        account: the record's "data" entry, filled while loading.
        whole: the public part of models over the whole shared item space.
        kept: networks that were trained in one place, for `train_once`; in memory alone.
    """

    items: Items
    public: PublicInputs
    shops: tuple[ShopData, ...]
    shop_public: tuple[PublicInputs, ...]
    split: Split
    account: dict[str, Any]
    whole: WholeSpace
    kept: dict[tuple[Recommender, int | None, int | None, bytes], State] = field(default_factory=dict, repr=False)


def training_rows(shop: ShopData, stage: Stage) -> sparse.csr_matrix:
    """The histories a model may learn from, (num_shoppers, num_shop_items); shoppers to be folded in have none."""
    if stage is Stage.CHOOSE:
        return shop.train
    return shop_rules.final_rows(shop.train, shop.validation, shop.fold_in)


def queries(shop: ShopData, stage: Stage, *, limit: int | None = None, seed: int = 0) -> Queries:
    """Whose lists are scored at this stage, and against what.

    Args:
        limit: score at most that many shoppers of the shop, drawn with ``seed``; None = all.
    """
    if stage is Stage.CHOOSE:
        known, targets, missing = shop.train + shop.fold_in, shop.validation, np.zeros(len(shop.shoppers), np.int64)
    else:
        known, targets, missing = shop.train + shop.validation + shop.fold_in, shop.test, shop.missing_test
    rows = np.flatnonzero((np.diff(targets.tocsr().indptr) > 0) | (missing > 0))
    if limit is not None and len(rows) > limit:
        rows = np.sort(np.random.default_rng([seed, len(rows)]).choice(rows, limit, replace=False))
    return Queries(rows, known.tocsr()[rows], targets.tocsr()[rows], missing[rows])


def pooled_rows(world: World, stage: Stage) -> sparse.csr_matrix:
    """Every shop's training histories in the shared item space, stacked in roster order."""
    parts = [shop.shared(training_rows(shop, stage), world.public.num_items) for shop in world.shops]
    return sparse.vstack(parts, format="csr")


def train_once(
    world: World, model: Recommender, place: int | None, stage: Stage, *, rounds: int | None = None
) -> State:
    """The shared arrays of a model trained on one shop's rows, or on everybody's (place = None), without a federation.

    A network over the same rows is not trained twice: the stages' rows are equal where nothing is held back for
    validation, and several columns ask for the same shop alone. Sums are not kept: they are large and soon made.

    Args:
        rounds: as `train_alone` takes it.
    """
    if place is None:
        rows, public = pooled_rows(world, stage), world.public
    else:
        rows, public = training_rows(world.shops[place], stage), world.shop_public[place]
    if not isinstance(model, LocalModel):
        return train_alone(model, rows, public, rounds=rounds)
    rows = rows.sorted_indices()
    digest = hashlib.blake2b()
    for array in (rows.indptr, rows.indices, rows.data):
        digest.update(np.ascontiguousarray(array).data)
    key = model, place, rounds, digest.digest()
    state = world.kept.get(key)
    if state is None:
        state = world.kept[key] = train_alone(model, rows, public, rounds=rounds)
        while sum(array.nbytes for arrays in world.kept.values() for array in arrays.values()) > _KEPT_BYTES:
            del world.kept[next(iter(world.kept))]
    return state


def prepare(settings: SimulationSettings) -> World:
    """Load, clean, assign shops, split and index."""
    loaded = sources.load(settings.data_settings(), seed=settings.seed)
    split = _split(settings, loaded)
    shared_items, shops = shop_rules.build_shops(split, loaded.items)
    if not shops:
        raise DataError("no shop has a training event after the split; choose another split or more data")
    items = loaded.items
    features = content_features(items.table["title"], items.table["category"])
    positions = items.table.index
    shop_public = tuple(PublicInputs.of(shop.items, features, positions) for shop in shops)
    account = _account(settings, loaded, split, shops, shared_items)
    public = PublicInputs.of(shared_items, features, positions)
    return World(items, public, shops, shop_public, split, account, WholeSpace(public))


def _split(settings: SimulationSettings, loaded: Loaded) -> Split:
    data, seed = settings.data, settings.seed
    if loaded.test is not None:
        train, test = shop_rules.assign_both(loaded.events, loaded.test, data.shops, seed=seed, items=loaded.items)
        return splits.given_test(train, test, seed=seed)
    events = shop_rules.assign(loaded.events, data.shops, seed=seed, items=loaded.items)
    kind = data.split or _SET_SPLITS.get(data.source or "") or _usual_split(events)
    parameters: dict[str, Any] = dict(data.split_settings)
    return splits.make_split(events, kind, seed=seed, **parameters)


_SET_SPLITS = {"online-retail-ii": SplitKind.LAST_BASKET}
"""Sets with a protocol of their own, where the scenario names no split."""


def _usual_split(events: Events) -> SplitKind:
    """What fits the events where no split is asked for."""
    return SplitKind.LEAVE_LAST if {"order", "timestamp"} & set(events.table) else SplitKind.RANDOM_SHARE


def _account(
    settings: SimulationSettings, loaded: Loaded, split: Split, shops: tuple[ShopData, ...], shared_items: np.ndarray
) -> dict[str, Any]:
    cleaning = loaded.cleaning
    found = {
        "test rows whose item the shop does not have": sum(int(shop.missing_test.sum()) for shop in shops),
        "test shoppers without history, scored as cold": sum(map(_num_cold, shops)),
        "shops of one shopper or item, whose own model is popularity": sum(
            is_too_small(training_rows(shop, Stage.FINAL)) for shop in shops
        ),
    }
    left_out = split.description.get("dropped", {})
    if isinstance(left_out, dict):
        found |= {f"left out by the split: {what}": int(count) for what, count in left_out.items()}
    handled = [*cleaning.handled, *((what, count) for what, count in found.items() if count)]
    return {
        "source": loaded.source.get("name", ""),
        "licence": loaded.source.get("licence", ""),
        "fingerprint": loaded.source.get("fingerprint", ""),
        "catalogue": "item list, titles and item statistics taken from the data; they count as declared",
        "rows_read": int(cleaning.rows_read),
        "dropped": [{"reason": reason, "rows": int(rows)} for reason, rows in cleaning.dropped],
        "handled": [{"what": what, "count": int(count)} for what, count in handled],
        "events": len(split.events),
        "shoppers": int(sum(len(shop.shoppers) for shop in shops)),
        "items": len(loaded.items),
        "shared_items": len(shared_items),
        "split": split.description,
        "shops": list(_shop_rows(shops)),
    }


def _num_cold(shop: ShopData) -> int:
    asked = queries(shop, Stage.FINAL)
    return int(np.count_nonzero(np.diff(asked.known.indptr) == 0))


def _shop_rows(shops: tuple[ShopData, ...]) -> Iterator[dict[str, Any]]:
    for shop in shops:
        yield {
            "shop": shop.name,
            "shoppers": len(shop.shoppers),
            "items": len(shop.items),
            "events": int(shop.train.nnz + shop.validation.nnz + shop.test.nnz + shop.fold_in.nnz),
            "test_shoppers": int((np.diff(shop.test.indptr) > 0).sum()),
        }
