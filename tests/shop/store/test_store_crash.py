"""Faults: a killed process, a full disk, a lock, files that are none."""

from __future__ import annotations

import os
import resource
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fedrec.errors import StoreError
from fedrec.shop.store import database as store_database
from fedrec.shop.store.rows import Event, EventKind
from fedrec.shop.store.store import Store

NOON = 1_700_000_000.0
ACKNOWLEDGED = 300
CHILD = """
import os, sys, threading
from fedrec.shop.store.store import Store
from fedrec.shop.store.rows import Event, EventKind

store = Store.open(sys.argv[1])

def write(name):
    for number in range(10**9):
        batch = [Event(name, "tea", EventKind.VIEW, 1.0, event_id=f"{name}-{number}-{place}") for place in range(5)]
        assert store.append_events(batch).accepted == 5
        os.write(1, f"{name}-{number}\\n".encode())

for name in ("one", "two", "three"):
    threading.Thread(target=write, args=(name,)).start()
"""


def seen(shopper: str = "ann", number: int = 0, size: int = 1) -> Event:
    return Event(shopper, f"item-{number}" + "x" * size, EventKind.VIEW, NOON)


def test_what_was_acknowledged_survives_a_kill_and_no_batch_is_there_in_part(store_url: str) -> None:
    child = subprocess.Popen([sys.executable, "-c", CHILD, store_url], stdout=subprocess.PIPE)
    assert child.stdout is not None
    lines = [child.stdout.readline() for _ in range(ACKNOWLEDGED)]
    os.kill(child.pid, signal.SIGKILL)
    rest = child.stdout.read().split(b"\n")[:-1]  # what is after the last end of line was not said in full
    child.stdout.close()
    assert child.wait(timeout=30) == -signal.SIGKILL
    acknowledged = {line.strip().decode() for line in (*lines, *rest)}
    assert len(acknowledged) >= ACKNOWLEDGED
    with Store.open(store_url) as store:
        batches: dict[str, int] = {}
        for row in store.events_after(0, limit=10**6):
            batch = row.event_id.rpartition("-")[0]
            batches[batch] = batches.get(batch, 0) + 1
        assert acknowledged <= batches.keys()
        assert set(batches.values()) == {5}
        assert store.append_events([seen()]).accepted == 1


@contextmanager
def no_room() -> Iterator[None]:
    """No file of this process can grow beyond a page or two."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_where_a_file_cannot_grow_nothing_is_accepted_and_it_goes_on_afterwards(tmp_path: Path) -> None:
    with Store.open(f"sqlite:///{tmp_path / 'store.sqlite'}") as store:
        store.append_events([seen("bob")])
        with no_room(), pytest.raises(StoreError, match=r"the store cannot be used .*disk"):
            store.append_events(seen(number=number, size=200) for number in range(1000))
        assert store.num_events() == 1
        assert store.append_events([seen()]).accepted == 1
    with Store.open(f"sqlite:///{tmp_path / 'store.sqlite'}") as store:
        assert store.num_events() == 2


def test_while_another_process_writes_readers_read_and_writers_say_what_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_database, "LOCK_WAIT_S", 0.05)
    path = tmp_path / "store.sqlite"
    with Store.open(f"sqlite:///{path}") as store:
        store.append_events([seen()])
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        failed: list[str] = []

        def write(number: int) -> None:
            with pytest.raises(StoreError) as caught:
                store.append_events([seen(number=number)])
            failed.append(str(caught.value))

        threads = [threading.Thread(target=write, args=(number,)) for number in range(1, 4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(failed) == 3
        assert any("locked" in line and "wait, or stop it" in line for line in failed)
        assert len(store.history("ann")) == 1
        other.execute("ROLLBACK")
        other.close()
        assert store.append_events([seen(number=9)]).accepted == 1
        assert len(store.history("ann")) == 2


def test_a_server_that_was_started_again_is_connected_to_again(postgres: Iterator[str]) -> None:
    psycopg = pytest.importorskip("psycopg")
    url = next(postgres)
    with Store.open(url) as store, psycopg.connect(url, autocommit=True) as other:
        store.append_events([seen()])
        for _ in range(2):
            others = "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE pid <> pg_backend_pid()"
            assert len(other.execute(f"{others} AND usename = 'fedrec'").fetchall()) >= 2
            assert len(store.history("ann")) == 1
            store.append_events([seen("bob")])


def test_a_file_that_is_no_store_or_that_others_can_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite"
    Store.open(f"sqlite:///{path}").close()
    assert path.stat().st_mode & 0o777 == 0o600
    path.chmod(0o640)
    with pytest.raises(StoreError, match=r"can be read by others; chmod 600"):
        Store.open(f"sqlite:///{path}")
    path.write_bytes(b"something else" * 1000)
    path.chmod(0o600)
    with pytest.raises(StoreError, match="not a database"):
        Store.open(f"sqlite:///{path}")
    with pytest.raises(StoreError, match="cannot be opened"):
        Store.open(f"sqlite:///{path}/store.sqlite")
