"""One town of processes for all tests of this folder: agents stay, each test starts its coordinator."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from .town import SHOPS, Town, build, settings_kept


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Town]:
    town = build(tmp_path_factory.mktemp("town"))
    try:
        yield town
    finally:
        town.close()


@pytest.fixture
def town(built: Town) -> Iterator[Town]:
    """All agents run; a test may end some, they are started again for the next."""
    for shop in SHOPS:
        if shop not in built.processes or built.processes[shop].poll() is not None:
            built.start(shop)
    with settings_kept(built):
        yield built
