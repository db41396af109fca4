"""What a shop's agent shows of itself on its own machine; the file is for the shop alone.

An agent that waits has no `Member`, and goes on showing what was known when it had one: nothing has changed since.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedrec.errors import ConfigError
from fedrec.federation.run_record import write_atomically

if TYPE_CHECKING:
    from fedrec.shop.member import Member

STATUS_FILE = "status.json"


def shop_figures(member: Member) -> dict[str, float]:
    """Budget spent and left, for metrics; empty before a private run."""
    if not member.has_ledger:
        return {}
    spent = member.ledger().spent()
    found = {name: float(value) for name, value in asdict(spent).items() if isinstance(value, int | float)}
    return {f"ledger_{name}": value for name, value in found.items()}


def write_status(folder: Path, traffic: Mapping[str, Any], member: Member | None) -> None:
    """Keep what the agent knows now; without a member what is kept of it stays.

    Raises:
        StoreError: the folder cannot be written.
    """
    if member is None:
        about = read_status(folder)
    else:
        about = {"shop": member.settings.name, "run_id": member.run_id, "ledger": shop_figures(member)}
    about |= {"at": datetime.now(UTC).isoformat(timespec="seconds"), "traffic": dict(traffic)}
    write_atomically(folder / STATUS_FILE, json.dumps(about, indent=1).encode())


def read_status(folder: Path) -> dict[str, Any]:
    """What was kept last.

    Raises:
        ConfigError: no agent has run here.
    """
    path = folder / STATUS_FILE
    if not path.exists():
        raise ConfigError(f"{folder}: no agent has run here yet; start it with fedrec shop run")
    return dict(json.loads(path.read_bytes()))


def agent_figures(folder: Path) -> tuple[bool, dict[str, float]]:
    """For metrics: whether the agent is connected, what it answered, what its ledger had spent when last in use."""
    about = read_status(folder)
    traffic = about["traffic"]
    figures = {name: float(traffic[name]) for name in ("refused", "bytes_up")}
    figures["answered"] = float(sum(traffic["answered"].values()))
    return bool(traffic["connected"]), {**figures, **about["ledger"]}
