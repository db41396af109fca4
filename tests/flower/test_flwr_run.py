"""What `flwr run .` does with a scenario: research mode alone, and never another scenario's shops."""

import importlib.util
from pathlib import Path

import pytest

from fedrec.errors import ConfigError

ROOT = Path(__file__).parents[2]
SMALL = """
[data.synthetic]
num_shoppers = 60
num_shops = 3
num_items = 40
"""


@pytest.fixture(scope="module")
def server():
    spec = importlib.util.spec_from_file_location("server_app_file", ROOT / "server" / "app.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def written(folder, text):
    path = folder / "scenario.toml"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("more", "named"),
    [
        ('[privacy]\nepsilon = 2.0\ndelta = 1e-6\nmode = "local"', "privacy.epsilon"),
        ("[federation]\nsecure = true", "federation.secure"),
        ("[federation]\npatience = 1", "federation.patience"),
    ],
)
def test_what_it_would_not_do_is_refused_and_nothing_is_written(server, tmp_path, more, named):
    with pytest.raises(ConfigError, match=rf"{named}: flwr run trains without it"):
        server.prepare_shops(written(tmp_path, SMALL + more), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_shops_of_another_scenario_are_not_trained(server, tmp_path):
    run_dir = tmp_path / "run"
    server.prepare_shops(written(tmp_path, SMALL), run_dir)
    server.prepare_shops(written(tmp_path, SMALL), run_dir)
    with pytest.raises(ConfigError, match="holds the shops of another scenario"):
        server.prepare_shops(written(tmp_path, SMALL.replace("40", "41")), run_dir)
