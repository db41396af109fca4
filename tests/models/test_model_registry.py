import subprocess
import sys
from dataclasses import dataclass

import pytest

from fedrec.errors import ConfigError
from fedrec.models import MODELS, describe_models, load_model, settings_of
from fedrec.models.ease import Ease, EaseSettings
from fedrec.models.popularity import Popularity


@dataclass(frozen=True)
class OwnSettings:
    """Of a user's model."""

    strength: float = 2.0


@dataclass(frozen=True)
class OwnModel(Popularity):
    """A user's own."""

    settings: OwnSettings = OwnSettings()


def test_every_built_in_model_loads_with_its_defaults():
    for name in MODELS:
        model = load_model(name)
        assert model.name == name
        assert load_model(name, settings_of(model)) == model


def test_settings_reach_the_model_and_whole_numbers_become_floats():
    assert load_model("ease", {"regularisation": 50}) == Ease(EaseSettings(regularisation=50.0))
    assert isinstance(load_model("ease", {"regularisation": 50}).settings.regularisation, float)
    assert load_model("ease", {"max_items": 500.0}).settings.max_items == 500


def test_a_class_by_its_path_loads(monkeypatch):
    monkeypatch.setitem(sys.modules, "own_package", sys.modules[__name__])
    assert load_model("own_package:OwnModel", {"strength": 3}).settings == OwnSettings(3.0)


def test_an_entry_point_loads(monkeypatch, tmp_path):
    folder = tmp_path / "mine-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1.0\n")
    (folder / "entry_points.txt").write_text("[fedrec.models]\nmine = fedrec.models.ease:Ease\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert load_model("mine", {"regularisation": 5.0}).settings.regularisation == 5
    assert [model.name for model in describe_models()] == [*MODELS, "mine"]


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("eas", {}, r"'eas' \(did you mean 'ease'\?\); give one of"),
        ("ease", {"regularization": 3}, r" \(did you mean 'regularisation'\?\); it takes: "),
        ("popularity", {"k": 3}, "it takes: none"),
        ("ease", {"max_items": 2.5}, "give a whole number"),
        ("ease", {"regularisation": "much"}, "give a number"),
        ("ease", {"regularisation": True}, "give a number"),
        ("ease", {"regularisation": -1.0}, "give a number above 0"),
        ("nowhere.to:Find", {}, "cannot import 'nowhere.to'"),
        (":Ease", {}, "cannot import"),
        ("fedrec.models.ease:Nothing", {}, "has no 'Nothing'"),
        ("fedrec.models.ease:dataclass", {}, "is no class"),
        ("fedrec.models.ease:EaseSettings", {}, "lacks plan_round"),
    ],
)
def test_unknown_names_and_values_are_refused_with_a_hint(name, settings, message):
    with pytest.raises(ConfigError, match=message):
        load_model(name, settings)


def test_descriptions_have_a_line_and_the_defaults():
    ease = next(model for model in describe_models() if model.name == "ease")
    assert "Steck" in ease.summary
    assert ease.settings["regularisation"] == EaseSettings().regularisation


def test_importing_the_registry_imports_no_numerics():
    code = "import sys, fedrec.models; sys.exit('scipy' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
