"""A shop's model opened from a run directory: solved again from the shared arrays and the shop's own events."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from safetensors import SafetensorError
from safetensors.numpy import load
from scipy import sparse

from fedrec.data.shops import final_rows
from fedrec.data.split import Part
from fedrec.errors import DataError, StoreError
from fedrec.federation.run_record import write_atomically
from fedrec.models import load_model, reference_of, settings_of
from fedrec.models.content import content_features
from fedrec.models.popularity import PopularityScorer, take
from fedrec.models.recommender import PublicInputs, Recommender, Scorer, State, train_alone
from fedrec.models.whole_space import WholeSpace, released_factor, whole_space_scorer
from fedrec.shop.personalise import Blend, Components, mixed_scorer

CHOICES_FORMAT = 2
SHARED_FILE = "model/shared.safetensors"
CHOICES_FILE = "model/personal.json"


@dataclass(frozen=True)
class ServedShop:
    """One shop ready to recommend.

    Attributes:
        name: of the shop.
        scorer: its model, over ``items``.
        items: str, (num_items,), sorted: keys of its catalogue.
        titles: str, (num_items,); "" = unknown.
        shoppers: str, (num_shoppers,), sorted.
        known: float32 CSR, (num_shoppers, num_items): what each had before the test events.
        tested: the same of the test events.
    """

    name: str
    scorer: Scorer
    items: np.ndarray
    titles: np.ndarray
    shoppers: np.ndarray
    known: sparse.csr_matrix
    tested: sparse.csr_matrix


def write_choices(
    run_dir: Path,
    *,
    local: Recommender,
    shared: Recommender,
    shared_items: np.ndarray,
    blends: Mapping[str, Blend],
    global_shares: Mapping[str, float],
) -> None:
    """Keep what every shop serves, so that `open_shop` can build it again.

    Args:
        local, shared: models with the settings of the local and the shared model.
        shared_items: str, (num_items,); the item space of the shared arrays.
        blends: by shop.
        global_shares: by shop, share of the global statistics in its mixed model.
    """
    about = {
        "format": CHOICES_FORMAT,
        "local": _model_record(local),
        "shared": _model_record(shared),
        "global_shares": dict(global_shares),
        "blends": dict(blends),
        "shared_items": [str(item) for item in shared_items.tolist()],
    }
    write_atomically(run_dir / CHOICES_FILE, json.dumps(about, indent=1, allow_nan=False).encode())


def open_shop(run_dir: Path, shop: str) -> ServedShop:
    """Open one shop of a finished run; takes as long as solving its model.

    Raises:
        StoreError: the run directory is not complete.
        DataError: the run has no such shop.
    """
    about, state = _read_model(run_dir)
    split = _read_table(run_dir / "split.parquet", [("shop", "==", shop)])
    if split.empty:
        raise DataError(f"shop {shop!r}: not in this run; there are: {', '.join(shop_names(run_dir))}")
    catalogue = _read_table(run_dir / "items.parquet", None).set_index("item")
    features = content_features(catalogue["title"], catalogue["category"])
    parts = split["part"].to_numpy()
    shoppers, rows = np.unique(split["shopper"].astype(str), return_inverse=True)
    keys = split["item"].astype(str).to_numpy()
    items = np.unique(keys[parts != Part.TEST])
    places, is_here = np.searchsorted(items, keys), np.isin(keys, items)

    def matrix(*wanted: Part) -> sparse.csr_matrix:
        chosen = is_here & np.isin(parts, wanted)
        table = sparse.csr_matrix(
            (np.ones(chosen.sum(), np.float32), (rows[chosen], places[chosen])), shape=(len(shoppers), len(items))
        )
        table.data[:] = 1
        return table

    trained = final_rows(matrix(Part.TRAIN), matrix(Part.VALIDATION), matrix(Part.FOLD_IN))
    public_of = partial(PublicInputs.of, features=features, catalogue=catalogue.index)
    return ServedShop(
        name=shop,
        scorer=_scorer(about, state, shop, public_of, items, trained),
        items=items,
        titles=catalogue["title"].reindex(items).fillna("").to_numpy(str),
        shoppers=shoppers,
        known=matrix(Part.TRAIN, Part.VALIDATION, Part.FOLD_IN),
        tested=matrix(Part.TEST),
    )


def _scorer(
    about: Mapping[str, Any],
    state: State,
    shop: str,
    public_of: Callable[[np.ndarray], PublicInputs],
    items: np.ndarray,
    rows: sparse.csr_matrix,
) -> Scorer:
    """The model that the run's main column serves at this shop."""
    shared_space, public = public_of(np.array(about["shared_items"], dtype=str)), public_of(items)
    places = np.minimum(np.searchsorted(shared_space.items, items), shared_space.num_items - 1)
    positions = np.where(shared_space.items[places] == items, places, -1).astype(np.int64)
    local, shared = (load_model(about[name]["class"], about[name]["settings"]) for name in ("local", "shared"))
    share = about["global_shares"][shop]
    trained: dict[str, Callable[[], Scorer]] = {
        "local": lambda: local.fit(train_alone(local, rows, public), public),
        "global": lambda: shared.fit(state, shared_space).restrict(positions, public),
        "mixed": lambda: mixed_scorer(shared, state, positions, rows, public, global_share=share),
    }
    whole = WholeSpace(shared_space)
    trained["local_wide"] = lambda: whole_space_scorer(whole, positions, rows, public)
    if "released" in state:
        trained["wide"] = lambda: whole_space_scorer(whole, positions, rows, public, released_factor(shared, state))
        trained["shared_popularity"] = lambda: PopularityScorer(take(state["popularity"], positions))
    return Components(trained, rows, public).blend(about["blends"][shop])


def _model_record(model: Recommender) -> dict[str, Any]:
    return {"class": reference_of(model), "settings": settings_of(model)}


def _read_model(run_dir: Path) -> tuple[dict[str, Any], State]:
    try:
        about = json.loads((run_dir / CHOICES_FILE).read_bytes())
        arrays = load((run_dir / SHARED_FILE).read_bytes())
    except (OSError, ValueError, SafetensorError) as error:
        raise StoreError(
            f"{run_dir}: no finished run here ({CHOICES_FILE} or {SHARED_FILE} cannot be read); "
            "give the run directory that `fedrec simulate` printed"
        ) from error
    if about.get("format") != CHOICES_FORMAT:
        raise StoreError(f"{run_dir}: {CHOICES_FILE} has format {about.get('format')!r}, not {CHOICES_FORMAT}")
    return about, {name: _as_trained(array) for name, array in arrays.items()}


def _as_trained(array: np.ndarray) -> np.ndarray:
    """Models compute in float64; the file holds float32 where that loses nothing."""
    return array.astype(np.float64) if array.dtype == np.float32 else array


def _read_table(path: Path, filters: list[tuple[str, str, str]] | None) -> pd.DataFrame:
    try:
        return pd.read_parquet(path, filters=filters)
    except (OSError, ValueError) as error:
        raise StoreError(f"{path}: cannot be read ({type(error).__name__}); is this a run directory?") from error


def shop_names(run_dir: Path) -> list[str]:
    """Names of the run's shops, sorted."""
    try:
        shops = pd.read_parquet(run_dir / "split.parquet", columns=["shop"])["shop"]
    except (OSError, ValueError) as error:
        raise StoreError(f"{run_dir}: split.parquet cannot be read; is this a run directory?") from error
    return sorted(shops.astype(str).unique().tolist())
