"""The gate in front of a new global model: it is served only if it does better than what the shop serves now.

Judged on the shop's own validation events, by the paired test of `fedrec.shop.personalise.decide`; a shop too small to
test takes a model by the size rule unless it scores plainly worse. A poisoned model therefore costs a round, not the
shop's lists. What was adopted stays on disk, so that going back is one command.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save
from scipy import sparse

from fedrec.data.shops import ShopData
from fedrec.errors import BadMessage, ConfigError, StoreError
from fedrec.evaluation.metrics import hit_matrix, ndcg, relevant_counts
from fedrec.evaluation.ranking import top_items
from fedrec.federation.run_record import write_atomically
from fedrec.models import load_model, reference_of, settings_of
from fedrec.models.recommender import PublicInputs, Recommender, Scorer, State
from fedrec.shop.personalise import DECISION_K, ShopPersonalisation, decide
from fedrec.shop.version import Version, local_scorer

LOCAL = "local"
"""The version that every shop begins with: its own model, trained on nothing but its own events."""

CURRENT_FILE = "current.json"
_ABOUT = "model.json"
_ARRAYS = "shared.safetensors"
_FORMAT = 1
_BATCH_ROWS = 1024


@dataclass(frozen=True)
class Adoption:
    """What became of a new model; stays in the shop.

    Attributes:
        run_id: whose model.
        is_adopted: served from now on.
        reason: in plain words.
        current, candidate: NDCG@50 on the shop's validation; None where nobody could be asked.
        num_shoppers: how many were.
    """

    run_id: str
    is_adopted: bool
    reason: str
    current: float | None
    candidate: float | None
    num_shoppers: int


def judge_and_keep(
    folder: Path,
    run_id: str,
    model: Recommender,
    state: State,
    public: PublicInputs,
    *,
    data: ShopData,
    positions: np.ndarray,
    shop_public: PublicInputs,
    settings: ShopPersonalisation,
    mode: str = "none",
    is_joint_dp: bool = False,
    make_ready: Callable[[str], None] | None = None,
) -> Adoption:
    """Judge a model, keep it on disk, and make it current if it is better.

    Args:
        folder: of the shop's models; a run that was judged there before is not judged again.
        state: the final shared arrays.
        public: the federation's item space.
        positions: int64, (num_shop_items,): place in it, -1 = known here alone.
        mode: how it was trained, see `Version`.
        is_joint_dp: the shop's lists may not depend on other shoppers' raw events, so neither may the choice of the
            model: one that was trained under a promise is taken without a test, any other is not.
        make_ready: called with the run id before an adopted model becomes current, so that a server finds it ready.
    Raises:
        BadMessage: the arrays are not this model's, or not finite.
    """
    for entry in _history(folder):
        if "is_adopted" in entry and entry["run_id"] == run_id:  # handed out again after the coordinator's restart
            return _adoption(entry)
    candidate = Version(model, state, public, positions, mode)
    if any(not np.isfinite(array).all() for array in state.values() if array.dtype.kind == "f"):
        raise BadMessage(f"the model of run {run_id!r} has values that are not finite")
    try:
        new = _figures(candidate.scorer(data.train, shop_public, settings), data)
    except (KeyError, ValueError, IndexError, TypeError) as error:
        raise BadMessage(f"the arrays of run {run_id!r} are not its model's ({type(error).__name__})") from error
    served = current_version(folder)
    now = _figures(scorer_of(folder, served, data.train, shop_public, settings), data)
    choice = decide(now, new, settings)
    is_adopted, reason = choice.joins, choice.reason
    if choice.p_value is None and len(new) and new.mean() < now.mean() - new.std() / np.sqrt(len(new)):
        is_adopted, reason = False, f"{choice.reason}, but scores worse by more than chance allows"
    if is_joint_dp:
        is_adopted = mode != "none"
        reason = f"serving is joint_dp: {'taken' if is_adopted else 'trained without a promise, not taken'} untested"
    _keep(folder / run_id, candidate)
    if is_adopted and make_ready is not None:
        make_ready(run_id)
    if (now_served := current_version(folder)) != served:  # somebody went back meanwhile, and it was judged by another
        is_adopted, reason = False, f"{now_served} was put in the place of {served} while it was judged"
        served = now_served
    _drop_refused(folder, keep={run_id, served})
    adoption = Adoption(run_id, is_adopted, reason, _mean(now), _mean(new), len(new))
    entry = {**asdict(adoption), "instead_of": served, "mode": mode}
    _write_current(folder, run_id if is_adopted else served, [*_history(folder), entry])
    return adoption


def current_version(folder: Path) -> str:
    """Run id of the model that is served, or `LOCAL`."""
    return str(_read_current(folder).get("current", LOCAL))


def replaced_versions(folder: Path) -> list[str]:
    """Versions that were served before, the last one first; each once."""
    replaced = [str(entry["instead_of"]) for entry in reversed(_history(folder)) if entry.get("is_adopted")]
    return list(dict.fromkeys(replaced))


def adoptions(folder: Path) -> list[Adoption]:
    """What became of every model that was judged here, the first one first."""
    return [_adoption(entry) for entry in _history(folder) if "is_adopted" in entry]


def roll_back(folder: Path, version: str | None = None) -> str:
    """Serve another version again: the one before, or the one named; returns it.

    Raises:
        ConfigError: there is none.
    """
    served, history = current_version(folder), _history(folder)
    if version is None:
        adopted = [entry for entry in history if entry["run_id"] == served and entry.get("is_adopted")]
        if not adopted:
            raise ConfigError(f"version {served!r} replaced no other: there is nothing to go back to")
        version = str(adopted[-1]["instead_of"])
    if version not in versions(folder):
        raise ConfigError(f"no version {version!r} here: {', '.join(sorted(versions(folder)))}")
    _write_current(folder, version, [*history, {"run_id": version, "reason": f"rolled back from {served}"}])
    return version


def versions(folder: Path) -> list[str]:
    """All that can be served."""
    found = [path.parent.name for path in sorted(folder.glob(f"*/{_ABOUT}"))] if folder.exists() else []
    return [LOCAL, *found]


def scorer_of(
    folder: Path,
    version: str,
    rows: sparse.csr_matrix,
    shop_public: PublicInputs,
    settings: ShopPersonalisation,
) -> Scorer:
    """One version, ready to rank the shop's catalogue.

    Raises:
        StoreError: its files cannot be read.
    """
    if version == LOCAL:
        return local_scorer(rows, shop_public, settings)
    return load_version(folder, version, shop_public).scorer(rows, shop_public, settings)


def load_version(folder: Path, version: str, shop_public: PublicInputs) -> Version:
    """A version that was kept, for the shop's catalogue as it is now.

    Raises:
        StoreError: its files cannot be read.
    """
    return _load(folder / version).at(shop_public.items)


def modes(folder: Path) -> dict[str, str]:
    """How every model that was judged here was trained, by run id; those that were not kept, too.

    Raises:
        StoreError: a kept model does not say.
    """
    try:
        judged = {entry["run_id"]: entry["mode"] for entry in _history(folder) if "is_adopted" in entry}
        kept = {path.parent.name: json.loads(path.read_bytes())["mode"] for path in folder.glob(f"*/{_ABOUT}")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StoreError(f"{folder}: a model that does not say how it was trained ({type(error).__name__})") from error
    return judged | kept


def _figures(scorer: Scorer, data: ShopData) -> np.ndarray:
    """float64: NDCG@50 of each shopper with validation items."""
    asked = np.flatnonzero(np.diff(data.validation.indptr))
    figures = []
    for start in range(0, len(asked), _BATCH_ROWS):
        rows = asked[start : start + _BATCH_ROWS]
        known, targets = data.train[rows], data.validation[rows]
        listed = top_items(scorer.scores(known), known, DECISION_K, seed=0, row_ids=rows)[0]
        figures.append(ndcg(hit_matrix(listed, targets), relevant_counts(targets), k=DECISION_K))
    return np.concatenate(figures) if figures else np.empty(0)


def _mean(values: np.ndarray) -> float | None:
    return float(values.mean()) if len(values) else None


def _keep(folder: Path, version: Version) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / _ARRAYS, save({name: np.ascontiguousarray(one) for name, one in version.state.items()}))
    arrays: dict[str, Any] = {"positions": version.positions}
    if (content := version.public.content) is not None:
        arrays |= {"data": content.data, "indices": content.indices, "indptr": content.indptr}
    write_atomically(folder / "items.safetensors", save({name: np.ascontiguousarray(a) for name, a in arrays.items()}))
    about = {
        "format": _FORMAT,
        "class": reference_of(version.model),
        "settings": settings_of(version.model),
        "items": [str(item) for item in version.public.items.tolist()],
        "num_features": None if content is None else content.shape[1],
        "mode": version.mode,
    }
    write_atomically(folder / _ABOUT, json.dumps(about, allow_nan=False).encode())


def _load(folder: Path) -> Version:
    try:
        about = json.loads((folder / _ABOUT).read_bytes())
        if about["format"] != _FORMAT:
            raise StoreError(f"{folder}: a model of format {about['format']!r}, expected {_FORMAT}")
        state = load((folder / _ARRAYS).read_bytes())
        arrays = load((folder / "items.safetensors").read_bytes())
        items = np.array(about["items"], dtype=object)
        content = None
        if about["num_features"] is not None:
            parts = (arrays["data"], arrays["indices"], arrays["indptr"])
            content = sparse.csr_matrix(parts, shape=(len(items), about["num_features"]))
        model = load_model(about["class"], about["settings"])
        return Version(model, state, PublicInputs(items, content), arrays["positions"], about["mode"])
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise StoreError(f"{folder}: no readable model ({type(error).__name__}); go back to another version") from error


def _adoption(entry: dict[str, Any]) -> Adoption:
    return Adoption(**{field.name: entry[field.name] for field in fields(Adoption)})


def _drop_refused(folder: Path, *, keep: Collection[str]) -> None:
    """Of models that were not taken over the last stays: a coordinator can hand out as many as it likes."""
    for entry in _history(folder):
        if entry.get("is_adopted") is False and entry["run_id"] not in keep:
            shutil.rmtree(folder / entry["run_id"], ignore_errors=True)


def _history(folder: Path) -> list[dict[str, Any]]:
    return list(_read_current(folder).get("history", []))


def _read_current(folder: Path) -> dict[str, Any]:
    path = folder / CURRENT_FILE
    if not path.exists():
        return {}
    try:
        return dict(json.loads(path.read_bytes()))
    except (OSError, ValueError) as error:
        raise StoreError(f"{path}: cannot be read ({type(error).__name__})") from error


def _write_current(folder: Path, version: str, history: list[dict[str, Any]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / CURRENT_FILE, json.dumps({"current": version, "history": history}, indent=1).encode())
