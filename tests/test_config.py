"""Scenario files and options over them."""

import tomllib
from pathlib import Path

import pytest

from fedrec.config import SimulationSettings, read_scenario, settings_from_options
from fedrec.errors import BadDelta, BadEpsilon, ConfigError, NoColluders, TooFewHonestShops
from fedrec.models import load_model

SCENARIOS = sorted((Path(__file__).parents[1] / "simulations" / "scenarios").glob("*.toml"))


def write(folder: Path, text: str) -> Path:
    path = folder / "scenario.toml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("path", SCENARIOS, ids=lambda path: path.stem)
def test_every_scenario_that_is_shipped_can_be_read_and_names_a_model_with_its_settings(path: Path) -> None:
    settings = read_scenario(path)
    assert settings.name == path.stem
    assert load_model(settings.model.name, settings.model.settings).name == settings.model.name


def test_an_empty_scenario_is_a_run_on_the_built_in_marketplace(tmp_path: Path) -> None:
    settings = read_scenario(write(tmp_path, ""))
    assert (settings.name, settings.data.source, settings.model.name) == ("synthetic", "synthetic", "ease")
    assert settings == SimulationSettings()


@pytest.mark.parametrize(
    ("text", "key", "near"),
    [
        ("[data]\nsorce = 'x'", "data.sorce", "source"),
        ("[dat]\nsource = 'x'", "dat", "data"),
        ("sed = 1", "sed", "seed"),
        ("[data.synthetic]\nnum_shop = 3", "data.synthetic.num_shop", "num_shops"),
        ("[federation.faults]\ndrops = 0.1", "federation.faults.drops", "drop"),
        ("[evaluation]\nbootstraps = 100", "evaluation.bootstraps", "bootstrap"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_known_one(tmp_path: Path, text: str, key: str, near: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_scenario(write(tmp_path, text))
    assert f"unknown key {key}; did you mean {near}?" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("seed = -1", "seed"),
        ("seed = 1.5", "seed"),
        ("name = '../up'", "name"),
        ("[data]\nsplit = 'leave'", "data.split"),
        ("[data]\nmin_rating = nan", "data.min_rating"),
        ("[model]\nsettings = {factors = [1]}", "model.settings.factors"),
        ("[federation]\nengine = 'spark'", "federation.engine"),
        ("[federation]\nworkers = -1", "federation.workers"),
        ("[federation.faults]\ndrop = 1.1", "federation.faults.drop"),
        ("[federation.faults]\ndelay_s = -1", "federation.faults.delay_s"),
        ("[evaluation]\nks = [0]", "evaluation.ks"),
        ("[evaluation]\ncolumns = ['fed']", "evaluation.columns"),
        ("[evaluation]\ncolumns = []", "evaluation.columns"),
        ("[evaluation]\nbootstrap = 1", "evaluation.bootstrap"),
        ("data = 3", "data"),
    ],
)
def test_a_value_out_of_range_is_refused_by_the_name_of_its_key(tmp_path: Path, text: str, key: str) -> None:
    with pytest.raises(ConfigError, match=key.replace(".", r"\.")) as caught:
        read_scenario(write(tmp_path, text))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("data = 3", "data = 3: give a section"),
        ("[evaluation]\nks = 10", "evaluation.ks = 10: give a list"),
        ("[model]\ntune = 'maybe'", 'model.tune = "maybe": give true or false'),
        ("[data]\nshops = 3", "data.shops = 3: give a text"),
        ("[data]\nevents = ''", "data.events is empty"),
        ("[data]\nshops = ''", "data.shops is empty"),
    ],
)
def test_what_should_be_given_is_said_without_words_of_a_programmer(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_scenario(write(tmp_path, text))
    assert str(caught.value).startswith(words)


def test_dates_of_a_split_may_be_written_as_dates_or_as_text(tmp_path: Path) -> None:
    for cut in ("2026-01-31", "'2026-01-31'"):
        text = f"[data]\nsplit = 'temporal'\nsplit_settings = {{test_from = {cut}}}"
        assert read_scenario(write(tmp_path, text)).data.split_settings == {"test_from": "2026-01-31"}


def test_a_marketplace_out_of_range_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="num_shops"):
        read_scenario(write(tmp_path, "[data.synthetic]\nnum_shops = 0"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[data]\nsource = 'ml-1m'\nevents = 'a.csv'", "give one of source, events, url"),
        ("[data]\nurl = 'sqlite:///a.db'", "query is missing"),
        ("[data]\nquery = 'select 1'", "url is missing"),
        ("[data]\nsource = 'ml-1m'\n[data.synthetic]\nnum_shops = 3", "needs source"),
    ],
)
def test_data_settings_that_contradict_each_other_are_refused(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        read_scenario(write(tmp_path, text))


@pytest.mark.parametrize("content", [b"a = = 1", b"\xff\xfe\x00"])
def test_a_file_that_is_not_toml_is_refused_with_its_name(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"broken\.toml"):
        read_scenario(path)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        read_scenario(tmp_path / "none.toml")


def test_files_in_a_scenario_are_relative_to_the_scenario_and_absolute_ones_stay(tmp_path: Path) -> None:
    text = "[data]\nevents = 'my.csv'\nitems = '/abs/items.csv'"
    data = read_scenario(write(tmp_path, text)).data
    assert data.events == str(tmp_path / "my.csv")
    assert data.items == "/abs/items.csv"


def test_options_replace_scenario_values_and_assignments_replace_options(tmp_path: Path) -> None:
    path = write(tmp_path, "seed = 1\n[model]\nname = 'ials'\nsettings = {factors = 8}")
    settings = settings_from_options(path, {"seed": 2, "model.name": None}, ["seed=3", "model.settings.alpha=2.5"])
    assert settings.seed == 3
    assert settings.model.name == "ials"
    assert settings.model.settings == {"factors": 8, "alpha": 2.5}


def test_a_source_given_as_an_option_replaces_the_events_of_the_scenario_and_what_belongs_to_them(
    tmp_path: Path,
) -> None:
    path = write(
        tmp_path, "name = 'mine'\n[data]\nevents = 'a.csv'\nsplit = 'temporal'\n[data.columns]\nitem = 'artikel'"
    )
    settings = settings_from_options(path, {"data.source": "ml-1m"})
    assert settings.data.events is None
    assert settings.data.columns == {}
    assert settings.data.split == "temporal"
    assert settings.name == "ml-1m"


@pytest.mark.parametrize(
    ("text", "value"), [("7", 7), ("0.5", 0.5), ("true", True), ("cosine", "cosine"), ("'7'", "7"), ("a=b", "a=b")]
)
def test_an_assigned_value_is_read_as_toml_else_as_text(text: str, value: object) -> None:
    settings = settings_from_options(None, {}, [f"model.settings.x={text}"])
    assert settings.model.settings == {"x": value}
    assert type(settings.model.settings["x"]) is type(value)


@pytest.mark.parametrize("text", ["seed", "=3", "seed.x=3"])
def test_an_assignment_that_names_no_key_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        settings_from_options(None, {"seed": 1}, [text])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[privacy]\nepsilon = 2", "epsilon = 2 without delta"),
        ("[privacy]\nepsilon = 'two'\ndelta = 1e-6", 'privacy.epsilon = "two": give a number above 0'),
        ("[privacy]\nepsilon = nan\ndelta = 1e-6", "privacy.epsilon = NaN: give a number above 0"),
        ("[privacy]\ndelta = inf", "privacy.delta = Infinity: give a number above 0 and at most 1 / (10 x"),
        ("[privacy]\ncolluders = 1.5", "privacy.colluders = 1.5: give a whole number"),
        ("[federation]\nmin_shops = 0", "federation.min_shops = 0: give a number of at least 1"),
        ("[privacy]\nmode = 'remote'", 'privacy.mode = "remote": give "distributed" or "local"'),
        ("[privacy]\nepsilons = 2", "unknown key privacy.epsilons; did you mean epsilon?"),
        ("[privacy]\nepsilon = 2\ndelta = 1e-6\n[evaluation]\ncolumns = ['local']", "an epsilon is given, but"),
        ("[evaluation]\ncolumns = ['federated_dp']", "evaluation.columns: federated_dp need an epsilon"),
    ],
)
def test_a_promise_that_cannot_be_read_is_refused_in_plain_words(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_scenario(write(tmp_path, text))
    assert str(caught.value).startswith(words)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"epsilon": 0}, BadEpsilon),
        ({"epsilon": [1, -2]}, BadEpsilon),
        ({"delta": 0.5}, BadDelta),
        ({"colluders": 0}, NoColluders),
        ({"min_shops": 1}, TooFewHonestShops),
    ],
)
def test_a_promise_that_would_not_hold_is_refused_by_an_error_of_its_own(
    change: dict[str, object], error: type[Exception]
) -> None:
    with pytest.raises(error):
        SimulationSettings.from_mapping({"privacy": {"epsilon": 2, "delta": 1e-6, **change}})


def test_every_scenario_that_is_shipped_needs_an_epsilon_alone_to_be_private() -> None:
    for path in SCENARIOS:
        assert read_scenario(path).privacy.epsilons == ()
        assert settings_from_options(path, {"privacy.epsilon": [0.5, 2]}).privacy.epsilons == (0.5, 2.0)


def test_no_default_promises_anything() -> None:
    privacy = SimulationSettings().privacy
    assert (privacy.epsilon, privacy.delta) == (None, None)


def test_settings_survive_the_way_through_json() -> None:
    settings = settings_from_options(
        None,
        {"data.source": "ml-1m", "data.shops": "random:3"},
        ["federation.faults.drop=0.1", "evaluation.ks=[5, 20]", "privacy.epsilon=[0.5, 2]", "privacy.delta=1e-6"],
    )
    assert SimulationSettings.from_mapping(settings.to_json()) == settings


def test_lists_of_ten_are_always_measured_and_columns_come_in_the_order_of_the_comparison() -> None:
    settings = settings_from_options(None, {}, ["evaluation.ks=[20, 5]", "evaluation.columns=['pooled', 'local']"])
    assert settings.evaluation.ks == (5, 10, 20)
    assert settings.evaluation.columns == ("local", "pooled")


@pytest.mark.parametrize(
    ("events", "name"), [("in/My Sales 2024.csv", "My-Sales-2024"), ("/x/été.parquet", "t"), ("über.csv", "ber")]
)
def test_a_run_on_a_file_is_named_after_it(events: str, name: str) -> None:
    assert settings_from_options(None, {"data.events": events}).name == name


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        SimulationSettings().seed = 3  # type: ignore[misc]


def test_the_scenario_of_the_start_page_is_one() -> None:
    page = (Path(__file__).parents[1] / "docs" / "start.md").read_text(encoding="utf-8")
    block = page.split("```toml\n", 1)[1].split("```", 1)[0]
    assert SimulationSettings.from_mapping(tomllib.loads(block)).name == "mine"
