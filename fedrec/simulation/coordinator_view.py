"""What a curious coordinator has seen of a simulated run: every byte that it received, as files."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from fedrec.federation.run_record import write_atomically

VIEW_FOLDER = "coordinator_view"


class CoordinatorView:
    """Keeps messages as ``coordinator_view/<rounds>/round-000-upload-shop-00000.bin``, and a list of them.

    With secure aggregation an upload is uniform noise to whoever has no masks; without it, it is the shop's sum.
    """

    def __init__(self, run_dir: Path, rounds: str, *, is_masked: bool) -> None:
        """Args:
        run_dir: of the run.
        rounds: names the federation within the run, as in ``eps-2``.
        is_masked: whether secure aggregation is on.
        """
        self._folder = run_dir / VIEW_FOLDER / rounds
        self._folder.mkdir(parents=True, exist_ok=True)
        self._is_masked = is_masked
        self._places: dict[str, int] = {}
        self._messages: list[dict[str, Any]] = []

    def __call__(self, step: str, index: int, shop: str, data: bytes) -> None:
        """Keep one message."""
        place = self._places.setdefault(shop, len(self._places))
        name = f"round-{index:03d}-{step}-shop-{place:05d}.bin"
        (self._folder / name).write_bytes(data)
        digest = hashlib.sha256(data).hexdigest()
        self._messages.append(
            {"round": index, "step": step, "shop": shop, "bytes": len(data), "sha256": digest, "file": name}
        )

    def close(self) -> None:
        """Write the list."""
        about = {"is_masked": self._is_masked, "messages": self._messages}
        write_atomically(self._folder / "messages.json", json.dumps(about, indent=1).encode())
