"""Serving models on disk: solved once by the shop's agent, opened by its server in a moment.

``models/<version>/serving.json`` says what is there and names the file of arrays beside it with its digest; it is
written last, so a reader sees the old model or the new one whole.
"""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from scipy import sparse

from fedrec.errors import ConfigError, DataError, StoreError
from fedrec.federation.run_record import write_atomically
from fedrec.models import load_model, reference_of, settings_of
from fedrec.models.recommender import PublicInputs, Recommender, State
from fedrec.shop.adoption import LOCAL, load_version, modes
from fedrec.shop.lists.neighbours import MAX_WEIGHTS, Neighbours
from fedrec.shop.lists.pairs import own_pairs
from fedrec.shop.lists.serving_model import Dense, InsideShop, ItemItem, Served, ServingModel, Term, serving_model
from fedrec.shop.personalise import ContentScorer, ShopPersonalisation
from fedrec.shop.version import Version, local_scorer

SERVING_FILE = "serving.json"
_FORMAT = 1


class Serving(StrEnum):
    """What a shop's lists are made from."""

    RAW = "raw"
    """The model with the shop's own statistics, as in any shop: no promise between its shoppers."""
    JOINT_DP = "joint_dp"
    """What was released with noise, public content, and the reader's own history."""


@dataclass(frozen=True)
class PreparationSettings:
    """How a model is made ready.

    Attributes:
        serving: see `Serving`.
        max_weights: of each item, the strongest; >= 1.
    """

    serving: Serving = Serving.RAW
    max_weights: int = MAX_WEIGHTS

    def __post_init__(self) -> None:
        if not self.max_weights >= 1:
            raise ConfigError(f"max_weights = {self.max_weights}: give a whole number of at least 1")


def prepare(
    folder: Path,
    version: str,
    rows: sparse.csr_matrix,
    shop_public: PublicInputs,
    *,
    settings: PreparationSettings,
    personalisation: ShopPersonalisation,
    spent_epsilon: float | None,
    generation: int = 0,
) -> ServingModel:
    """Make a version ready to serve and write it beside its arrays.

    Args:
        folder: of the shop's models.
        version: run id, or `fedrec.shop.adoption.LOCAL`.
        rows: float32 CSR, (num_shoppers, num_shop_items); the shop's own. Not read under ``joint_dp``.
        shop_public: the shop's item space; under ``joint_dp`` the declared catalogue, never what was found in events.
        spent_epsilon: what all releases so far tell of a shopper, by the ledger; None = nothing bounds it.
        generation: of the store, asked before the rows were read.
    Raises:
        StoreError: the version's files cannot be read, or the new ones not written.
        ConfigError: under ``joint_dp``, a version that was trained without a promise.
    Guarantee: under ``joint_dp`` what is written is a function of released arrays and public items alone.
    """
    is_joint = settings.serving is Serving.JOINT_DP
    kept = None if version == LOCAL else load_version(folder, version, shop_public)
    mode = "alone" if kept is None else kept.mode
    if is_joint and mode == "none":
        raise ConfigError(f"version {version!r} was trained without a promise: serving = joint_dp cannot use it")
    outside = None if "none" in modes(folder).values() else spent_epsilon
    inside, generation = (InsideShop.JOINT_DP, 0) if is_joint else (InsideShop.NONE, generation)
    served = Served(version, mode, outside, inside, generation)
    if is_joint:
        popularity = np.zeros(shop_public.num_items) if kept is None else kept.released_popularity()
        scorer = ContentScorer(shop_public) if kept is None else kept.released_scorer(shop_public)
        pairs = None
    else:
        popularity = np.asarray(rows.sum(axis=0), np.float64).ravel()
        score = local_scorer if kept is None else kept.scorer
        scorer = score(rows, shop_public, personalisation)
        pairs = own_pairs(rows, least_shoppers=personalisation.own_statistics_min_shoppers)
    items = np.array([str(key) for key in shop_public.items.tolist()], dtype=object)
    model = serving_model(scorer, items, popularity, served, pairs=pairs, max_weights=settings.max_weights)
    dense = None
    if isinstance(model, Dense):
        assert kept is not None  # the local model and content are linear
        dense = kept.model, _dense_state(kept, rows, shop_public, personalisation, is_joint=is_joint), shop_public
    write_serving(folder / version, model, dense)
    return model


def _dense_state(
    kept: Version,
    rows: sparse.csr_matrix,
    shop_public: PublicInputs,
    personalisation: ShopPersonalisation,
    *,
    is_joint: bool,
) -> State:
    if is_joint:
        return kept.released_state(shop_public)
    return kept.mixed_state(rows, shop_public, personalisation, 0.0)


def write_serving(
    folder: Path, model: ItemItem | Dense, dense: tuple[Recommender, State, PublicInputs] | None = None
) -> None:
    """Write a serving model into the folder of its version.

    Args:
        dense: of a `Dense` one: what its scorer is fitted from when it is opened.
    Raises:
        StoreError: it cannot be written.
    """
    arrays: dict[str, np.ndarray] = {"popularity": model.popularity}
    about: dict[str, Any] = {"format": _FORMAT, "items": model.items.tolist(), "served": asdict(model.served)}
    if model.pairs is not None:
        arrays |= {"pairs.items": model.pairs.items, "pairs.weights": model.pairs.weights}
    if isinstance(model, ItemItem):
        about["terms"] = [term.weight for term in model.terms]
        for place, term in enumerate(model.terms):
            arrays[f"{place}.base"] = term.base
            if term.neighbours is not None:
                arrays |= {f"{place}.items": term.neighbours.items, f"{place}.weights": term.neighbours.weights}
    elif dense is not None:
        recommender, state, public = dense
        about["dense"] = {"class": reference_of(recommender), "settings": settings_of(recommender)}
        arrays |= {f"state.{name}": array for name, array in state.items()}
        if (content := public.content) is not None:
            about["dense"]["num_features"] = content.shape[1]
            arrays |= {f"content.{name}": getattr(content, name) for name in ("data", "indices", "indptr")}
    else:
        raise ConfigError("a dense model needs what it is fitted from")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        part = folder / "serving.part"
        save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, part)
        digest = _digest(part)
        about["arrays"] = f"serving-{digest[:16]}.safetensors"
        about["sha256"] = digest
        part.replace(folder / about["arrays"])
        write_atomically(folder / SERVING_FILE, json.dumps(about, allow_nan=False).encode())
        for old in folder.glob("serving-*.safetensors"):
            if old.name != about["arrays"]:
                old.unlink()
    except (OSError, SafetensorError) as error:
        raise StoreError(f"{folder}: the serving model cannot be written ({type(error).__name__}: {error})") from error


def is_prepared(folder: Path, version: str) -> bool:
    """Whether `open_serving` has something to open."""
    return (folder / version / SERVING_FILE).is_file()


def stale_versions(folder: Path, generation: int) -> list[str]:
    """Versions that are ready to be served, made with raw events of somebody who was erased since.

    Args:
        folder: of the shop's models.
        generation: of the store, now.
    """
    found = []
    for path in sorted(folder.glob(f"*/{SERVING_FILE}")):
        with suppress(OSError, ValueError, KeyError, TypeError):  # a damaged one is not served either
            if _served(json.loads(path.read_bytes())["served"]).is_stale(generation):
                found.append(path.parent.name)
    return found


def open_serving(folder: Path, version: str) -> ServingModel:
    """A version that was made ready; the server's `OpenModel`.

    Args:
        folder: of the shop's models.
    Raises:
        StoreError: it was not made ready, or its files are damaged.
    """
    path = folder / version / SERVING_FILE
    if not path.is_file():
        raise StoreError(f"{path}: version {version!r} was not made ready; run fedrec shop refresh")
    try:
        about = json.loads(path.read_bytes())
        if about["format"] != _FORMAT:
            raise StoreError(f"{path}: of format {about['format']!r}, not {_FORMAT}; run fedrec shop refresh")
        file = path.parent / Path(about["arrays"]).name
        if _digest(file) != about["sha256"]:
            raise StoreError(f"{file}: damaged; run fedrec shop refresh")
        arrays = load_file(file)
        model = _read(about, arrays)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError, DataError) as error:
        raise StoreError(f"{path}: cannot be read ({type(error).__name__}); run fedrec shop refresh") from error
    if model.served.version != version:
        raise StoreError(f"{path}: holds version {model.served.version!r}; run fedrec shop refresh")
    return model


def _read(about: dict[str, Any], arrays: State) -> ServingModel:
    items = np.array(about["items"], dtype=object)
    said = about["served"]
    served = _served(said)
    pairs = Neighbours(arrays["pairs.items"], arrays["pairs.weights"]) if "pairs.items" in arrays else None
    popularity = arrays["popularity"]
    lengths = {len(items), len(popularity)}
    if "dense" in about:
        told = about["dense"]
        state = {name.removeprefix("state."): array for name, array in arrays.items() if name.startswith("state.")}
        content = None
        if "num_features" in told:
            parts = tuple(arrays[f"content.{name}"] for name in ("data", "indices", "indptr"))
            content = sparse.csr_matrix(parts, shape=(len(items), told["num_features"]))
        scorer = load_model(told["class"], told["settings"]).fit(state, PublicInputs(items, content))
        model: ServingModel = Dense(items, popularity, scorer, served, pairs)
    else:
        terms = tuple(_term(weight, place, arrays) for place, weight in enumerate(about["terms"]))
        lengths |= {len(term.base) for term in terms}
        lengths |= {term.neighbours.num_items for term in terms if term.neighbours is not None}
        model = ItemItem(items, popularity, terms, served, pairs)
    if len(lengths) != 1 or (pairs is not None and pairs.num_items not in lengths):
        raise DataError("arrays of different catalogues")
    return model


def _served(said: dict[str, Any]) -> Served:
    inside, generation = InsideShop(said["inside_shop"]), int(said.get("generation", 0))
    return Served(said["version"], said["mode"], said["epsilon_outside"], inside, generation)


def _term(weight: float, place: int, arrays: State) -> Term:
    neighbours = None
    if f"{place}.items" in arrays:
        neighbours = Neighbours(arrays[f"{place}.items"], arrays[f"{place}.weights"])
    return Term(float(weight), arrays[f"{place}.base"], neighbours)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
