"""Fixtures that many tests share."""

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# In CI the same examples every time, elsewhere new ones at each run; neither depends on how busy the machine is.
_ANY_SPEED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("here", _ANY_SPEED)
settings.register_profile("ci", _ANY_SPEED, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "here")


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder with the real data sets; skips where it is absent."""
    folder = Path(os.environ.get("FEDREC_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"real data sets are not here: {folder} (set FEDREC_DATA)")
    return folder
