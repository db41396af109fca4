"""What a shop's agent shows of itself on its own machine; the file is for the shop alone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fedrec.errors import ConfigError
from fedrec.federation.run_record import write_atomically
from fedrec.shop.adoption import current_version
from fedrec.shop.member import MODELS_FOLDER, Member

STATUS_FILE = "status.json"


def shop_figures(member: Member) -> dict[str, float]:
    """Budget spent and left, for metrics; empty before a private run."""
    if not member.has_ledger:
        return {}
    spent = member.ledger().spent()
    found = {name: float(value) for name, value in asdict(spent).items() if isinstance(value, int | float)}
    return {f"ledger_{name}": value for name, value in found.items()}


def write_status(folder: Path, member: Member, traffic: Mapping[str, Any]) -> None:
    """Keep what the agent knows now."""
    about = {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "shop": member.settings.name,
        "run_id": member.run_id,
        "model": current_version(folder / MODELS_FOLDER),
        "traffic": dict(traffic),
        "ledger": shop_figures(member),
    }
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
