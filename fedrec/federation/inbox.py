"""What a coordinator must not forget while a round is open: the set-up of keys, the uploads, the survivors it named.

Every upload is on disk before survivors are named. A coordinator that comes back after a crash makes the same plan
again (it follows from the checkpoint and the set-up), takes the uploads that it had, and asks the missing shops alone:
the same round goes on, at no further charge to anybody. Uploads are noisy or masked as they came; nothing is secret.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from fedrec.errors import StoreError
from fedrec.federation.run_record import write_atomically

_SETUP = "setup.json"
_SURVIVORS = "survivors.json"
_UPLOAD = ".upload"


class Inbox:
    """A folder of one run."""

    def __init__(self, folder: Path) -> None:
        self._folder = Path(folder)
        self._round: Path | None = None

    def keep_setup(self, data: bytes) -> None:
        """Keep a finished set-up (`CoordinatorSession.to_bytes`); the one before goes."""
        _make(self._folder)
        write_atomically(self._folder / _SETUP, data)

    def setup(self) -> bytes | None:
        """The set-up that was kept last."""
        path = self._folder / _SETUP
        return path.read_bytes() if path.exists() else None

    def open(self, plan_digest: bytes) -> None:
        """Begin a round, or go on with it; what was kept of other rounds goes."""
        self._round = self._folder / plan_digest.hex()
        _make(self._round)
        for other in self._folder.iterdir():
            if other.is_dir() and other != self._round:
                shutil.rmtree(other)

    def keep_upload(self, shop: str, data: bytes) -> None:
        """Keep a shop's upload of the open round.

        Raises:
            StoreError: the disk is full, or the folder gone.
        """
        write_atomically(self._open() / f"{shop.encode().hex()}{_UPLOAD}", data)

    def uploads(self) -> dict[str, bytes]:
        """Uploads of the open round by shop; of survivors alone, once they were named."""
        named = self.survivors()
        found = {}
        for path in sorted(self._open().glob(f"*{_UPLOAD}")):
            shop = bytes.fromhex(path.stem).decode()
            if named is None or shop in named:
                found[shop] = path.read_bytes()
        return found

    def keep_survivors(self, shops: tuple[str, ...]) -> None:
        """Keep whom the coordinator names as survivors, before it names them; shops sign one set a round."""
        write_atomically(self._open() / _SURVIVORS, json.dumps(sorted(shops)).encode())

    def survivors(self) -> frozenset[str] | None:
        """Whom it named in the open round; None = nobody yet."""
        path = self._open() / _SURVIVORS
        return frozenset(json.loads(path.read_bytes())) if path.exists() else None

    def _open(self) -> Path:
        if self._round is None:
            raise StoreError(f"{self._folder}: no round is open")
        return self._round


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"{folder}: cannot be made ({error.strerror})") from error
