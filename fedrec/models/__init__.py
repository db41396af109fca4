"""Recommenders that a federation can train; by name, by ``package.module:Class``, or from the entry points."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

from fedrec.errors import ConfigError, NoPrivateVariant

if TYPE_CHECKING:
    from fedrec.models.recommender import PrivateVariant, PublicInputs, Recommender
    from fedrec.privacy.mechanisms import Outlook, ReleaseRequest, Schedule
    from fedrec.privacy.spec import PrivacySpec

MODELS: dict[str, str] = {
    "popularity": "fedrec.models.popularity:Popularity",
    "itemknn": "fedrec.models.itemknn:ItemKnn",
    "ease": "fedrec.models.ease:Ease",
    "ials": "fedrec.models.ials:Ials",
    "gmf": "fedrec.models.ncf:Gmf",
    "mlp": "fedrec.models.ncf:Mlp",
    "neumf": "fedrec.models.ncf:NeuMf",
    "multdae": "fedrec.models.autoencoders:MultDae",
    "multvae": "fedrec.models.autoencoders:MultVae",
    "recvae": "fedrec.models.autoencoders:RecVae",
    "vaegan": "fedrec.models.autoencoders:VaeGan",
    "smallae": "fedrec.models.smallae:SmallAe",
}
"""The built-in models: name to ``module:Class``."""

ENTRY_POINT_GROUP = "fedrec.models"


@dataclass(frozen=True)
class ModelDescription:
    """One model, for people.

    Attributes:
        name: what ``--model`` takes.
        summary: first line of the class's docstring.
        settings: default by field name.
        can_be_private: whether it can be trained under a privacy budget.
    """

    name: str
    summary: str
    settings: dict[str, Any]
    can_be_private: bool = False

    @property
    def privacy_modes(self) -> tuple[str, ...]:
        """Modes of ``privacy.mode`` that it can be trained in; none = without a promise."""
        return ("none", "local", "distributed") if self.can_be_private else ("none",)


def load_model(name: str, settings: Mapping[str, Any] | None = None) -> Recommender:
    """Build a model from its name and settings.

    Args:
        name: a built-in name, a name of the entry-point group ``fedrec.models``, or ``package.module:Class``.
        settings: values by field name of the model's settings; the rest keep their defaults.
    Raises:
        ConfigError: nothing goes by that name, it cannot be imported, or a setting is unknown or out of range.
    """
    model_class = _model_class(name)
    settings_class = _settings_class(model_class)
    chosen = _checked(settings_class, dict(settings or {}), name)
    return model_class(**chosen) if settings_class is model_class else model_class(settings=settings_class(**chosen))


def settings_of(model: Recommender) -> dict[str, Any]:
    """A model's settings by field name: `load_model` makes the same model from them."""
    holder = getattr(model, "settings", model)
    if not is_dataclass(holder):
        return {}
    return {field.name: getattr(holder, field.name) for field in fields(holder) if field.init}


def reference_of(model: Recommender) -> str:
    """``module:Class`` of a model; with `settings_of` another process builds the same one from it."""
    return f"{type(model).__module__}:{type(model).__qualname__}"


def can_be_private(model: Any) -> bool:
    """Whether a model (or its class) has a private variant: `fedrec.models.recommender.PrivateVariant`."""
    return all(callable(getattr(model, method, None)) for method in _PRIVATE_METHODS)


def release_requests(model: Recommender, crowd: float | None = None) -> tuple[ReleaseRequest, ...]:
    """The noisy sums that a model's private variant asks for, in round order.

    Args:
        crowd: as `fedrec.models.recommender.PrivateVariant` takes it.
    Raises:
        NoPrivateVariant: the model cannot be trained under a privacy budget.
    """
    variant = _private_variant(model)
    return variant.release_requests() if crowd is None else variant.release_requests(crowd)


def private_schedule(model: Recommender, spec: PrivacySpec, num_shops: int) -> Schedule:
    """The calibrated releases of a model's private variant, the budget split by public rule.

    Args:
        model: as configured.
        spec: what is promised.
        num_shops: of the roster.
    Raises:
        NoPrivateVariant: the model cannot be trained under a privacy budget.
        ConfigError: shoppers are sampled, and people have accounts in several shops.
        PrivacyError: no noise keeps the promise.
    """
    from fedrec.privacy.calibration import calibrate
    from fedrec.privacy.mechanisms import ReleaseRequest, sum_noise_sd

    rate = min((request.sampling_rate for request in release_requests(model)), default=1.0)
    if rate < 1 and spec.max_shops_per_person > 1:
        raise ConfigError(
            f"private_sampling_rate = {rate:g} with max_shops_per_person = {spec.max_shops_per_person}: steps on a "
            "sample are not accounted for people in several shops; give private_sampling_rate = 1, or "
            "max_shops_per_person = 1"
        )
    whole = calibrate((ReleaseRequest("all", 1.0, clip_norm=1.0),), spec)[0]
    crowd = spec.public_shoppers / sum_noise_sd(whole, spec, num_shops)
    return calibrate(release_requests(model, crowd), spec)


def private_model(model: Recommender, outlook: Outlook, public: PublicInputs) -> Recommender:
    """The private variant of a model, its settings chosen by public rules for the noise at hand.

    Args:
        model: as configured. Never with settings that were tuned on shoppers' data: those would not be public.
        outlook: of the schedule that was calibrated for `release_requests`.
        public: the item space.
    Raises:
        NoPrivateVariant: the model cannot be trained under a privacy budget.
        ConfigError: the outlook is of another number of releases.
    """
    variant = _private_variant(model)
    wanted = [request.name for request in variant.release_requests() for _ in range(request.repeats)]
    planned = [release.name for release in outlook.schedule]
    if planned != wanted or len(outlook.noise_sds) != len(planned):
        raise ConfigError(f"model '{model.name}' asks for the releases {wanted}, the schedule plans {planned}")
    return variant.private(outlook, public)


def _private_variant(model: Recommender) -> PrivateVariant:
    if not can_be_private(model):
        able = ", ".join(about.name for about in describe_models() if about.can_be_private)
        raise NoPrivateVariant(
            f"model '{model.name}' cannot be trained under a privacy budget; these can: {able} (or give your model "
            "release_requests and private, see fedrec.models.recommender.PrivateVariant)"
        )
    variant: Any = model
    return variant


def describe_models() -> list[ModelDescription]:
    """All models with a name: the built-in ones, then those of the entry points."""
    descriptions = []
    for name in _known_names():
        model_class = _model_class(name)
        settings_class = _settings_class(model_class)
        doc = (model_class.__doc__ or "").strip().splitlines()
        defaults = {field.name: _default(field) for field in fields(settings_class) if field.init}
        descriptions.append(ModelDescription(name, doc[0] if doc else "", defaults, can_be_private(model_class)))
    return descriptions


def _known_names() -> list[str]:
    own = [point.name for point in entry_points(group=ENTRY_POINT_GROUP) if point.name not in MODELS]
    return [*MODELS, *sorted(own)]


def _model_class(name: str) -> Any:
    """The class behind a name; imports its module."""
    reference = MODELS.get(name)
    if reference is None:
        points = {point.name: point.value for point in entry_points(group=ENTRY_POINT_GROUP)}
        reference = points.get(name, name if ":" in name else None)
    if reference is None:
        names = _known_names()
        raise ConfigError(
            f"there is no model '{name}'{_nearest(name, names)}; give one of {', '.join(names)} or package.module:Class"
        )
    module_name, _, class_name = reference.partition(":")
    try:
        found: Any = importlib.import_module(module_name)
    except Exception as error:  # a user's module may fail in any way
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(f"model '{name}': cannot import '{module_name}': {reason}") from error
    for part in class_name.split("."):
        if not hasattr(found, part):
            raise ConfigError(f"model '{name}': module '{module_name}' has no '{class_name}'")
        found = getattr(found, part)
    if not isinstance(found, type):
        raise ConfigError(f"model '{name}': '{class_name}' is no class; give package.module:Class")
    missing = [method for method in _METHODS if not callable(getattr(found, method, None))]
    if missing:
        raise ConfigError(
            f"model '{name}': class '{class_name}' lacks {', '.join(missing)}; "
            "see fedrec.models.recommender.Recommender"
        )
    return found


_METHODS = (
    *("plan_round", "contributions", "advance", "fit"),
    *("project", "own_statistics", "mix", "candidates"),
)


_PRIVATE_METHODS = ("release_requests", "private")


def _settings_class(model_class: Any) -> Any:
    """The dataclass of a model's settings: of its ``settings`` attribute, or the model itself."""
    if is_dataclass(model_class):
        for field in fields(model_class):
            if field.name == "settings" and isinstance(field.default_factory, type):
                return field.default_factory
            if field.name == "settings" and is_dataclass(field.default):
                return type(field.default)
        return model_class
    raise ConfigError(
        f"model class '{model_class.__name__}' is no dataclass: make it a frozen dataclass of its settings, "
        "or of one field 'settings' with a dataclass as its default"
    )


def _checked(settings_class: Any, settings: dict[str, Any], name: str) -> dict[str, Any]:
    """The settings with whole numbers as the fields' own types; refuses unknown names and wrong types."""
    known = {field.name: _default(field) for field in fields(settings_class) if field.init}
    for key, value in settings.items():
        if key not in known:
            takes = ", ".join(known) or "none"
            raise ConfigError(f"model '{name}' has no setting '{key}'{_nearest(key, list(known))}; it takes: {takes}")
        settings[key] = _like(value, known[key], f"model '{name}': setting {key}")
    return settings


def _like(value: Any, default: Any, what: str) -> Any:
    """``value`` as the type of ``default``, where that loses nothing."""
    wanted: Any
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if isinstance(default, bool):
        wanted, is_fine = bool, isinstance(value, bool)
    elif isinstance(default, int):
        wanted, is_fine = int, is_number and float(value).is_integer()
    elif isinstance(default, float):
        wanted, is_fine = float, is_number
    elif isinstance(default, str):
        wanted, is_fine = str, isinstance(value, str)
    else:
        return value
    if not is_fine:
        words = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
        raise ConfigError(f"{what} = {value!r}: give {words[wanted]}")
    return wanted(value)


def _default(field: Any) -> Any:
    if field.default is not MISSING:
        return field.default
    return field.default_factory() if field.default_factory is not MISSING else None


def _nearest(name: str, names: list[str]) -> str:
    near = difflib.get_close_matches(name, names, n=1)
    return f" (did you mean '{near[0]}'?)" if near else ""
