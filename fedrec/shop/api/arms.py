"""Which model a shopper is served: the current one, or one of two while they are compared.

The split is by a keyed hash of the shopper, so that she stays in her arm, and nobody without the key can say in which.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

import numpy as np

from fedrec.errors import BrokenModel, FedrecError, StoreError
from fedrec.shop.adoption import CURRENT_FILE, LOCAL, current_version, replaced_versions
from fedrec.shop.lists.serving_files import SERVING_FILE
from fedrec.shop.lists.serving_model import ServingModel
from fedrec.shop.lists.serving_settings import Split

CURRENT_ARM, OTHER_ARM = "a", "b"
LEAST_KNOWN = 0.1
"""A model that knows a smaller share of the shop's items is of another catalogue."""

_log = logging.getLogger("fedrec.shop.api")
OpenModel = Callable[[Path, str], ServingModel]
"""(models folder, version) -> the model."""


@dataclass(frozen=True, repr=False)
class Opened:
    """Models that are open, and what could not be.

    Attributes:
        current: version that should be served.
        models: by arm: ``a``, and ``b`` where there is a split.
        trouble: why another one is served than should be; None = it is not.
    """

    current: str
    models: Mapping[str, ServingModel]
    trouble: str | None


def arm_of(shopper: str, split: Split, key: bytes) -> str:
    """A shopper's arm.

    Args:
        key: of the shop, secret, at most 64 bytes.
    """
    drawn = int.from_bytes(blake2b(shopper.encode(), key=key, person=b"fedrec split", digest_size=8).digest(), "big")
    return OTHER_ARM if drawn < split.share * 2**64 else CURRENT_ARM


def open_models(
    folder: Path,
    split: Split | None,
    before: Opened | None,
    *,
    catalogue: Collection[str],
    open_model: OpenModel,
) -> Opened:
    """Open what should be served; where that cannot be, keep what is, or take the last version that can be opened.

    At the start, where every version is of another catalogue, the first of them is better than nothing.

    Args:
        folder: of the shop's models.
        before: what is open now; None at the start.
        catalogue: keys of the shop's items.
    Raises:
        StoreError: nothing can be opened.
    """
    troubles: list[str] = []
    earlier: list[str] = []
    strange: list[ServingModel] = []
    try:
        current = current_version(folder)
        earlier = replaced_versions(folder)
    except StoreError:
        current = before.current if before else LOCAL
        troubles.append("the file that says which model is current cannot be read")

    def opened(version: str) -> ServingModel | None:
        try:
            model = open_model(folder, version)
            if not np.isfinite(model.scores(np.empty(0, np.int64), np.empty(0))).all():
                raise BrokenModel("it gives scores that are not finite")
        except FedrecError as error:
            _log.warning("model %s cannot be opened: %s", version, error)
            troubles.append(f"model {version} cannot be opened; fedrec shop refresh makes it ready again")
            return None
        if share_known(model, catalogue) < LEAST_KNOWN:
            troubles.append(f"model {version} is of another catalogue")
            strange.append(model)
            return None
        return model

    model = opened(current) if not troubles or before is None else None
    if model is None and before is not None:
        model = before.models[CURRENT_ARM]
    for version in dict.fromkeys((*earlier, LOCAL)):
        if model is None and version != current:
            model = opened(version)
    if model is None and strange:  # a catalogue that grew: what knows little of it lists the rest by its words
        model = strange[0]
    if model is None:
        raise StoreError(f"{folder}: no model can be served ({'; '.join(troubles)}); run fedrec shop refresh")
    models = {CURRENT_ARM: model}
    if split is not None and (other := opened(split.version)) is not None:
        models[OTHER_ARM] = other
    return Opened(current, models, troubles[0] if troubles else None)


def share_known(model: ServingModel, catalogue: Collection[str]) -> float:
    """Share of a catalogue that a model knows; 1 of an empty one, and for a model of a shop without any item."""
    if not catalogue or not len(model.items):
        return 1.0
    known = set(model.items.tolist())
    return sum(key in known for key in catalogue) / len(catalogue)


def files_of(folder: Path, split: Split | None) -> object:
    """Compares unequal to an earlier one when a file that decides what is served has changed."""
    current = folder / CURRENT_FILE
    try:
        version = current_version(folder)
    except StoreError:
        version = ""
    versions = [version, *([] if split is None else [split.version])]
    paths = [current, *(folder / one / SERVING_FILE for one in versions if one)]
    return tuple((str(path), *stamp(path)) for path in paths)


def stamp(path: Path) -> tuple[int, int, int]:
    """Of a file's content; zeros where there is none."""
    try:
        found = path.stat()
    except OSError:
        return (0, 0, 0)
    return found.st_mtime_ns, found.st_size, found.st_ino
