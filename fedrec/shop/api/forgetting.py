"""What an erasure answers, over HTTP and at the command line: what is gone, and what still holds her until when."""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fedrec.errors import FedrecError
from fedrec.shop.lists.serving_files import stale_versions
from fedrec.shop.member import MODELS_FOLDER
from fedrec.shop.past_releases import past_releases
from fedrec.shop.store.rows import Erasure

_log = logging.getLogger("fedrec.shop.api")


def what_is_left(
    folder: Path, shop: str, erased: Erasure, served: set[str], *, generation: int, trains_on_store: bool
) -> dict[str, Any]:
    """As `fedrec.shop.api.schemas.ErasureOut`.

    Args:
        folder: the shop's.
        shop: its name.
        served: versions that are served and hold her.
        generation: of the store, since the erasure.
        trains_on_store: False = on a file of the shop's own, which nobody but the shop can take her out of.
    """
    try:
        past = past_releases(folder, shop)
        epsilon, told = past.epsilon, str(past)
    except FedrecError as error:  # she is erased all the same
        _log.warning("shop %s: what has left it cannot be said: %s", shop, error)
        epsilon, told = None, "what has left the shop cannot be said: its ledger or a model cannot be read"
    stale = sorted(served.union(stale_versions(folder / MODELS_FOLDER, generation)))
    held = (
        [] if trains_on_store else ["the file that the shop trains on: until her rows are deleted there; do so first"]
    )
    held += [f"model {version}: until fedrec shop refresh makes it anew" for version in stale]
    if not erased.is_wiped:
        held.append("the database's log: until no process reads an older state of it; then erase her again")
    return {
        "num_events": erased.num_events,
        "num_impressions": erased.num_impressions,
        "erased_at": datetime.fromtimestamp(erased.erased_at, UTC).isoformat(timespec="seconds"),
        "is_wiped": erased.is_wiped,
        "epsilon_outside": epsilon,
        "past_releases": told,
        "needs_refresh": bool(stale),
        "still_held": held,
    }
