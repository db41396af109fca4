"""What a run is asked to do: a scenario file (TOML), options over it, checked and frozen.

A scenario has the sections ``[data]``, ``[model]``, ``[federation]``, ``[privacy]`` and ``[evaluation]``. Every key has
a default (privacy's is: no promise), so an empty file is a run on the built-in marketplace. Unknown keys are refused
with the nearest known one.
"""

from __future__ import annotations

import dataclasses
import datetime
import difflib
import json
import math
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from fedrec.data.marketplace import SyntheticSettings
from fedrec.data.sources import DataSettings
from fedrec.data.split import SplitKind
from fedrec.errors import ConfigError
from fedrec.privacy.settings import PrivacySettings
from fedrec.privacy.spec import Mode
from fedrec.shop.personalise import PersonalisationSettings

ColumnName = Literal[
    "popularity",
    "dp_popularity",
    "local",
    "federated",
    "federated_personal",
    "federated_dp",
    "federated_dp_personal",
    "pooled",
]
COLUMNS: tuple[str, ...] = get_args(ColumnName)
"""Columns of a comparison, in the order in which they are shown."""

PRIVATE_COLUMNS = ("dp_popularity", "federated_dp", "federated_dp_personal")
"""Columns that exist once for each epsilon, as ``federated_dp@2``, and not at all without one."""

SYNTHETIC = "synthetic"
"""The source that needs no file: the built-in marketplace."""

Setting = bool | int | float | str
Share = Annotated[float, Field(ge=0, le=1)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class DataSection(_Section):
    """Where events come from, and how they become shops and parts.

    Attributes:
        source: a named set (``fedrec data list``); or
        events: a CSV or Parquet file; or
        url, query: an SQLAlchemy URL and the SELECT to run there. With none of them: the built-in marketplace.
        items: a file with item text, category and price.
        test: a file of test events; replaces the split.
        columns: our column name -> the file's, for columns that are not found by their usual names.
        item_key: the column that makes two shops' items the same (a GTIN, a SKU).
        shops: ``column``, ``random:N``, ``skewed:N``, ``skewed:N:ALPHA`` or ``category``.
        split: kind of split; None = ``leave-last`` where events are in order, else ``random-share``, and
            ``last-basket`` for the set online-retail-ii. ``split_settings`` are its parameters (see
            `fedrec.data.split.make_split`).
        min_rating: keep ratings of at least this.
        service_codes: items that are no goods, such as postage; None = the usual ones where items are stock codes.
        synthetic: what marketplace to generate, for the source ``synthetic``.
    """

    source: str | None = None
    events: str | None = None
    url: str | None = None
    query: str | None = None
    items: str | None = None
    test: str | None = None
    columns: dict[str, str] = {}
    item_key: str | None = None
    shops: str = "column"
    split: SplitKind | None = None
    split_settings: dict[str, Setting] = {}
    min_rating: float | None = None
    service_codes: tuple[str, ...] | None = None
    synthetic: SyntheticSettings = SyntheticSettings()

    @field_validator("split_settings", mode="before")
    @classmethod
    def _dates_as_text(cls, values: Any) -> Any:
        """TOML has dates of its own; splits read them as text."""
        if not isinstance(values, Mapping):
            return values
        return {key: one.isoformat() if isinstance(one, datetime.date) else one for key, one in values.items()}

    @model_validator(mode="before")
    @classmethod
    def _default_source(cls, values: Any) -> Any:
        if isinstance(values, dict):
            for key in ("source", "events", "url", "query", "items", "test", "shops", "item_key"):
                if values.get(key) == "":
                    raise ConfigError(f"data.{key} is empty; give a value, or leave it out")
        if isinstance(values, dict) and not any(values.get(key) for key in ("source", "events", "url")):
            return {**values, "source": SYNTHETIC}
        return values

    @model_validator(mode="after")
    def _one_source(self) -> DataSection:
        given = [f"{key} = {value!r}" for key in ("source", "events", "url") if (value := getattr(self, key))]
        if len(given) > 1:
            raise ConfigError(f"data: {' and '.join(given)}: give one of source, events, url")
        if bool(self.url) != bool(self.query):
            missing = "query" if self.url else "url"
            raise ConfigError(f"data: {missing} is missing; a database needs both url and query")
        if self.synthetic != SyntheticSettings() and self.source != SYNTHETIC:
            raise ConfigError(f'[data.synthetic] needs source = "{SYNTHETIC}"; it is {given[0]}')
        return self


class ModelSection(_Section):
    """Which model is trained.

    Attributes:
        name: of a model (``fedrec models``), or ``package.module:Class``.
        settings: the model's own fields; the rest keep their defaults.
        tune: choose settings on validation shoppers, for every column alike.
    """

    name: str = "ease"
    settings: dict[str, Setting] = {}
    tune: bool = True


class FaultsSection(_Section):
    """What goes wrong on purpose: probabilities for each message, and the longest delay of a reply in seconds."""

    drop: Share = 0.0
    delay_s: Annotated[float, Field(ge=0)] = 0.0
    error: Share = 0.0
    duplicate: Share = 0.0
    seed: int = 0


class FederationSection(_Section):
    """How rounds are run.

    Attributes:
        engine: ``local`` (in this process, or worker processes) or ``ray`` (Flower's simulation engine, an extra).
        workers: worker processes; 0 = in this process.
        min_shops: a round with fewer answers fails; None = 1, and four of five under secure aggregation.
        shops_per_round: shops that a local-update round asks, drawn anew for each by the run's seed: a share below 1,
            or a whole number; None = all.
        patience: rounds without a better validation NDCG@10 of the shared model after which no more are run; the best
            round's arrays are kept. Federation and pooled model then learn without the validation events. None = never.
        secure: secure aggregation of every round, so that the coordinator sees sums over shops alone; None = where an
            epsilon is given and shops share the noise.
        reveal_coordinator_view: keep everything that the coordinator received, beside the run's results.
        faults: seeded failures.
    """

    engine: Literal["local", "ray"] = "local"
    workers: Annotated[int, Field(ge=0, le=256)] = 0
    min_shops: Annotated[int, Field(ge=1)] | None = None
    shops_per_round: Annotated[float, Field(gt=0)] | None = None
    patience: Annotated[int, Field(ge=1)] | None = None
    secure: bool | None = None
    reveal_coordinator_view: bool = False
    faults: FaultsSection = FaultsSection()

    @field_validator("shops_per_round")
    @classmethod
    def _share_or_count(cls, value: float | None) -> float | None:
        if value is not None and value >= 1 and not value.is_integer():
            raise ConfigError(
                f"federation.shops_per_round = {value:g}: give a share of the shops below 1, or a whole number of them"
            )
        return value

    def num_asked(self, num_shops: int) -> int | None:
        """How many of so many shops a local-update round asks; None = all. A share is rounded up."""
        if self.shops_per_round is None or self.shops_per_round >= 1:
            return None if self.shops_per_round is None else int(self.shops_per_round)
        return math.ceil(self.shops_per_round * num_shops - 1e-9)


class EvaluationSection(_Section):
    """What is measured.

    Attributes:
        ks: list lengths; 10 is always among them, since the comparison is on NDCG@10.
        columns: which columns of the comparison to compute; those under differential privacy need an epsilon.
        max_test_shoppers_per_shop: score a seeded sample where a shop has more; None = all.
        max_curve_shoppers_per_shop: the same for the learning curve, which scores anew after each round.
        sampled_negatives: also the leave-one-out columns with 99 sampled negatives, for comparison with papers.
        bootstrap: resamples behind each interval.
    """

    ks: tuple[Annotated[int, Field(ge=1, le=50)], ...] = (10, 20, 50)
    columns: tuple[ColumnName, ...] = get_args(ColumnName)
    max_test_shoppers_per_shop: Annotated[int, Field(ge=1)] | None = None
    max_curve_shoppers_per_shop: Annotated[int, Field(ge=1)] = 1000
    sampled_negatives: bool = False
    bootstrap: Annotated[int, Field(ge=100, le=100_000)] = 1000

    @field_validator("ks")
    @classmethod
    def _sorted_with_ten(cls, ks: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(sorted({*ks, 10}))

    @field_validator("columns")
    @classmethod
    def _in_order(cls, columns: tuple[ColumnName, ...]) -> tuple[ColumnName, ...]:
        if not columns:
            raise ConfigError(f"evaluation.columns is empty; choose from {', '.join(COLUMNS)}")
        return tuple(name for name in get_args(ColumnName) if name in columns)


class SimulationSettings(_Section):
    """Everything a run depends on, beside the data itself. Build one in Python, or read a scenario file."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=60)] = "run"
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    data: DataSection = DataSection()
    model: ModelSection = ModelSection()
    federation: FederationSection = FederationSection()
    privacy: PrivacySettings = PrivacySettings()
    evaluation: EvaluationSection = EvaluationSection()
    personalisation: PersonalisationSettings = PersonalisationSettings()

    @model_validator(mode="before")
    @classmethod
    def _default_name(cls, values: Any) -> Any:
        if isinstance(values, dict) and "name" not in values:
            return {**values, "name": _name_from_data(values.get("data"))}
        return values

    @model_validator(mode="after")
    def _columns_fit_the_promise(self) -> SimulationSettings:
        wanted = set(self.evaluation.columns)
        if not self.privacy.epsilons and wanted <= set(PRIVATE_COLUMNS):
            raise ConfigError(f"evaluation.columns: {', '.join(sorted(wanted))} need an epsilon (--epsilon 2)")
        if self.privacy.epsilons and not wanted & set(PRIVATE_COLUMNS):
            raise ConfigError(
                "an epsilon is given, but evaluation.columns names no column that needs one: add one of "
                f"{', '.join(PRIVATE_COLUMNS)}"
            )
        return self

    @model_validator(mode="after")
    def _rounds_fit_the_promise(self) -> SimulationSettings:
        federation = self.federation
        if federation.shops_per_round is not None and (self.privacy.epsilons or self.is_masked):
            why = (
                "with an epsilon: the noise is shares of all shops, and asking fewer is not counted as protection"
                if self.privacy.epsilons
                else "with secure aggregation: who is not asked would have to be opened as a drop-out in every round"
            )
            raise ConfigError(
                f"federation.shops_per_round = {federation.shops_per_round:g} {why}; leave it out, and all are asked"
            )
        if federation.patience is None:
            return self
        if self.privacy.epsilons:
            raise ConfigError(
                f"federation.patience = {federation.patience} with an epsilon: a validation figure is the shops' raw "
                "data, and one noisy sum of it after every round would cost more of the budget than the rounds it "
                "saves; leave it out, and set the number of rounds"
            )
        if not {"federated", "federated_personal"} & set(self.evaluation.columns):
            raise ConfigError(
                f"federation.patience = {federation.patience}: evaluation.columns names no column with rounds to stop; "
                "add federated or federated_personal"
            )
        return self

    @property
    def is_masked(self) -> bool:
        """Whether the rounds run under secure aggregation: as asked, else where shops share a promise's noise."""
        if self.federation.secure is None:
            return bool(self.privacy.epsilons) and self.privacy.mode is Mode.DISTRIBUTED
        return self.federation.secure

    def data_settings(self) -> DataSettings:
        """What to read, for `fedrec.data.sources.load`."""
        from fedrec.data.sources import DataSettings

        wanted = {field.name for field in dataclasses.fields(DataSettings)}
        return DataSettings(
            **{name: getattr(self.data, name) for name in type(self.data).model_fields if name in wanted}
        )

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> SimulationSettings:
        """Check nested plain values, as a scenario file or a record's ``config`` entry holds them.

        Raises:
            ConfigError: a key is unknown or a value out of range; the message names the key.
        """
        try:
            return cls.model_validate(dict(values))
        except ValidationError as error:
            findings = dict.fromkeys(explain(entry) for entry in error.errors()[:4])
            raise ConfigError("; ".join(findings)) from None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values with all defaults filled in: the record's ``config`` entry, and a scenario again."""
        return self.model_dump(mode="json")


def read_scenario(path: str | Path) -> SimulationSettings:
    """Read a scenario file; relative paths in it are relative to the file.

    Raises:
        ConfigError: the file is missing or no TOML, a key is unknown, a value out of range.
    """
    return settings_from_options(path)


def settings_from_options(
    scenario: str | Path | None = None,
    options: Mapping[str, Any] | None = None,
    assignments: Iterable[str] = (),
) -> SimulationSettings:
    """Settings from a scenario file, options over it, and ``key=value`` assignments over both.

    Args:
        scenario: a TOML file, or None for the defaults.
        options: dotted key ("data.source") -> value; None values are left out. A source, events file or URL replaces
            whichever of the three the scenario names, with what belongs to it.
        assignments: "model.settings.regularisation=100"; the value is read as TOML, else taken as text.
    Raises:
        ConfigError: as `read_scenario`, or an assignment without "=".
    """
    values = {} if scenario is None else _read_scenario_file(Path(scenario))
    given = {key: value for key, value in (options or {}).items() if value is not None}
    for text in assignments:
        key, sign, value = text.partition("=")
        if not sign or not key.strip():
            raise ConfigError(f"--set {text}: write key=value, as in model.settings.regularisation=100")
        given[key.strip()] = _toml_value(value.strip())
    if given.keys() & {"data.source", "data.events", "data.url"} and isinstance(values.get("data"), dict):
        belongs = (
            "source",
            "events",
            "url",
            "query",
            "items",
            "test",
            "columns",
            "item_key",
            "service_codes",
            "synthetic",
        )
        values["data"] = {key: value for key, value in values["data"].items() if key not in belongs}
        values.pop("name", None)
    for key, value in given.items():
        _assign(values, key, value)
    return SimulationSettings.from_mapping(values)


def nearest(word: str, known: Iterable[str]) -> str:
    """ "; did you mean X?" for the most similar known word, else ""."""
    matches = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"; did you mean {matches[0]}?" if matches else ""


def read_toml(path: Path, advice: str, what: str = "") -> dict[str, Any]:
    """A TOML file's values.

    Args:
        advice: what to do where it cannot be read.
        what: what it is, in front of its path.
    Raises:
        ConfigError: the file is missing or no TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{what}{path}: cannot be read ({error.strerror}); {advice}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{what}{path}: is not a text file in UTF-8; {advice}") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{what}{path}: is not TOML ({error})") from error


def _read_scenario_file(path: Path) -> dict[str, Any]:
    values = read_toml(path, "give a TOML file", "scenario ")
    data = values.get("data")
    for key in ("events", "items", "test"):
        if isinstance(data, dict) and isinstance(data.get(key), str) and data[key]:
            data[key] = str(path.parent / data[key])
    return values


def _toml_value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _assign(values: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key, making the sections on the way."""
    *path, last = key.split(".")
    for step in path:
        values = values.setdefault(step, {})
        if not isinstance(values, dict):
            raise ConfigError(f"{key}: {step} is not a section")
    values[last] = value


def _name_from_data(data: Any) -> str:
    """Default name of a run: the named set, or the stem of the events file."""
    if not isinstance(data, dict):
        return SYNTHETIC
    text = data.get("source") or Path(str(data.get("events") or "")).stem or ("database" if data.get("url") else "")
    name = "".join(letter if letter.isalnum() and letter.isascii() else "-" for letter in str(text)).strip("-")
    return name[:60] or ("run" if text else SYNTHETIC)


def explain(error: Any, root: type[BaseModel] | None = None) -> str:
    """One finding of pydantic in our words: which key, which value, what is allowed.

    Args:
        root: settings that were checked; None = a scenario's.
    """
    path = [str(step) for step in error["loc"]]
    key = ".".join(path)
    if error["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        known = _known_keys(root or SimulationSettings, path[:-1])
        return f"unknown key {key}{nearest(path[-1], known)} (known: {', '.join(known)})"
    if path == ["privacy", "mode"]:
        return f'{key} = {_short(error["input"])}: give "distributed" or "local"'
    if path == ["privacy", "delta"]:
        return f"{key} = {_short(error['input'])}: give a number above 0 and at most 1 / (10 x number of shoppers)"
    if path[:2] == ["privacy", "epsilon"]:
        return f"privacy.epsilon = {_short(error['input'])}: give a number above 0, or a list of them"
    if path[:2] == ["model", "settings"] or path[:2] == ["data", "split_settings"]:
        return f"{'.'.join(path[:3])} = {_short(error['input'])}: give a number, a text, true or false"
    if error["type"] in _WANTED:
        return f"{key} = {_short(error['input'])}: give {_WANTED[error['type']]}"
    if error["type"] in _BOUNDS:
        sign, name = _BOUNDS[error["type"]]
        return f"{key} = {_short(error['input'])}: give a number {sign} {error['ctx'][name]}"
    message = error["msg"][:1].lower() + error["msg"][1:]
    return f"{key} = {_short(error['input'])}: {message}"


_WANTED = {
    "tuple_type": "a list, as in [10, 20]",
    "dict_type": "a section of keys and values",
    "model_type": "a section of keys and values",
    "dataclass_type": "a section of keys and values",
    "string_type": "a text",
    "finite_number": "a finite number",
    "float_parsing": "a number",
    "float_type": "a number",
    "int_parsing": "a whole number",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "bool_parsing": "true or false",
    "bool_type": "true or false",
}
"""Type of a finding of pydantic -> what was to be given."""

_BOUNDS = {
    "greater_than": ("above", "gt"),
    "greater_than_equal": ("of at least", "ge"),
    "less_than": ("below", "lt"),
    "less_than_equal": ("of at most", "le"),
}
"""Likewise for bounds, and where pydantic has the bound."""


def _short(value: Any) -> str:
    return json.dumps(value, default=str)[:80]


def _known_keys(root: type[BaseModel], path: list[str]) -> list[str]:
    """Keys of the section at a path."""
    section: Any = root
    for step in path:
        section = section.model_fields[step].annotation
    if dataclasses.is_dataclass(section):
        return [field.name for field in dataclasses.fields(section)]
    return list(section.model_fields)
