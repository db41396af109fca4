"""What a curious coordinator has seen of a simulated run: every message of the shops, as files."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from fedrec.errors import StoreError

VIEW_FOLDER = "coordinator_view"
LIST_FILE = "messages.jsonl"


class CoordinatorView:
    """Keeps one federation's messages as ``coordinator_view/<rounds>/000000-round-000-upload-shop-00000.bin``.

    Beside them ``messages.jsonl`` lists them in the order of arrival, one JSON object a line. Both only grow: a resumed
    run adds what it receives as a further attempt, so the messages of an interrupted one stay. With secure aggregation
    an upload is uniform noise to whoever has no masks; without it, it is the shop's sum.
    """

    def __init__(self, run_dir: Path, rounds: str, *, is_masked: bool) -> None:
        """Args:
        run_dir: of the run.
        rounds: names the federation within the run, as in ``eps-2/federated_dp-draw-1``.
        is_masked: whether secure aggregation is on.
        Raises:
            StoreError: the list is there and cannot be read.
        """
        self._folder = run_dir / VIEW_FOLDER / rounds
        self._folder.mkdir(parents=True, exist_ok=True)
        self._list = self._folder / LIST_FILE
        self._is_masked = is_masked
        self._places: dict[str, int] = {}
        self._next, self._attempt = _continue(self._list)

    def __call__(self, step: str, index: int, shop: str, data: bytes) -> None:
        """Keep one message; it is in the list when this returns."""
        place = self._places.setdefault(shop, len(self._places))
        name = f"{self._next:06d}-round-{index:03d}-{step}-shop-{place:05d}.bin"
        (self._folder / name).write_bytes(data)
        about = {
            "number": self._next,
            "attempt": self._attempt,
            "round": index,
            "step": step,
            "shop": shop,
            "is_masked": self._is_masked,
            "bytes": len(data),
            "sha256": hashlib.sha256(data).hexdigest(),
            "file": name,
        }
        with open(self._list, "ab", buffering=0) as file:  # one write: a kill leaves no half line
            file.write(json.dumps(about).encode() + b"\n")
        self._next += 1


def _continue(path: Path) -> tuple[int, int]:
    """Number of the next message, and of the attempt that begins."""
    if not path.exists():
        return 0, 1
    try:
        last = json.loads(path.read_bytes().splitlines()[-1])
        return int(last["number"]) + 1, int(last["attempt"]) + 1
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise StoreError(f"{path}: no readable list of messages ({type(error).__name__}); move it away") from error
