"""The same two apps on Flower's own engines; needs the extra ``ray``."""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from fedrec.flower.engines import run_local

REPOSITORY = Path(__file__).parents[2]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("ray") is None, reason="Ray is not installed (pip install 'fedrec[ray]')"
    ),
]

RUN_WITH_RAY = """
import sys
from pathlib import Path
import numpy as np
from safetensors.numpy import save_file
from fedrec.flower.engines import Federation, run_with_ray
from fedrec.shop.node import read_shop_files

files = read_shop_files(Path(sys.argv[1]))
histories = [files.node(place).histories for place in range(len(files.terms.roster))]
federation = Federation(
    files.model, files.public, files.terms, histories
)
save_file(run_with_ray(federation, run_dir=Path(sys.argv[1])).state, sys.argv[2])
"""


def environment(home: Path) -> dict[str, str]:
    return os.environ | {
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "PYTHONPATH": str(REPOSITORY),
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
    }


def test_flowers_ray_engine_gives_the_same_bits(federation, tmp_path):
    federation.write_files(tmp_path / "run")
    state_file = tmp_path / "state.safetensors"
    subprocess.run(
        [sys.executable, "-c", RUN_WITH_RAY, str(tmp_path / "run"), str(state_file)],
        check=True,
        timeout=180,
        env=environment(tmp_path),
        cwd=tmp_path,
    )
    expected = run_local(federation).state
    for name, array in load_file(state_file).items():
        np.testing.assert_array_equal(array, expected[name])


def local_superlinks(home: Path) -> set[int]:
    """Process ids whose environment names this Flower home: what `flwr run` left running."""
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if f"FLWR_HOME={home}".encode() in (process / "environ").read_bytes().split(b"\0"):
                found.add(int(process.name))
        except OSError:
            continue
    return found


def test_flwr_run_trains_a_prepared_run_directory(federation, tmp_path):
    federation.write_files(tmp_path / "run")
    app_dir = tmp_path / "app"
    app_dir.mkdir()
    shutil.copy(REPOSITORY / "pyproject.toml", app_dir)
    for folder in ("clients", "server"):
        shutil.copytree(REPOSITORY / folder, app_dir / folder)
    command = ["flwr", "run", ".", "--federation-config", "num-supernodes=5 client-resources-num-cpus=1"]
    command += ["--run-config", f'run-dir="{tmp_path / "run"}"', "--stream"]
    try:
        subprocess.run(command, check=True, timeout=240, env=environment(tmp_path), cwd=app_dir)
    finally:
        for process_id in local_superlinks(tmp_path):
            os.kill(process_id, 15)
    expected = run_local(federation).state
    for name, array in load_file(tmp_path / "run" / "model" / "shared.safetensors").items():
        np.testing.assert_array_equal(array, expected[name])
