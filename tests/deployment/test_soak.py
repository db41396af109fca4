"""A short soak: a few rounds with faults by seed, and the checks of the long one."""

from __future__ import annotations

from pathlib import Path

import pytest

from simulations.benchmarks.soak import soak

pytestmark = pytest.mark.slow


def test_a_few_rounds_with_faults_by_seed_lose_nothing_and_charge_nothing_twice(tmp_path: Path, capsys):
    soak(tmp_path, num_rounds=4, seed=2)
    said = capsys.readouterr().out
    assert "arrays as without faults; one charge a sum, no repeat" in said
    assert "faults: {}" not in said  # some were there
