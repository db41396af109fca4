"""What a coordinator offers for a run, from its settings, its item list and the enrolled shops."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from fedrec.errors import ConfigError
from fedrec.federation.enrolment import Enrolment, Offer
from fedrec.federation.terms import Terms
from fedrec.models import load_model, private_model, private_schedule, reference_of, settings_of
from fedrec.privacy.mechanisms import Schedule, outlook
from fedrec.privacy.settings import PrivacySettings, usual_min_shops
from fedrec.privacy.spec import PrivacySpec
from fedrec.role_config import CoordinatorSettings
from fedrec.secure_aggregation.parameters import Parameters


def make_offer(settings: CoordinatorSettings, enrolments: Mapping[str, Enrolment], run_id: str) -> Offer:
    """What a new run asks of the enrolled shops; nothing in it depends on an event.

    Raises:
        ConfigError, DataError: settings or item list cannot be used.
        PrivacyError: the promise cannot be made to these shops.
    """
    if not enrolments:
        raise ConfigError("no shop is enrolled: send an invitation (fedrec coordinator invite), then admit the answers")
    roster = tuple(enrolments)
    keys = {shop: enrolment.key for shop, enrolment in enrolments.items()}
    items = _read_items(settings)
    model = load_model(settings.model.name, dict(settings.model.settings))
    declared = sum(enrolment.public_shoppers for enrolment in enrolments.values())
    spec: PrivacySpec | None = None
    schedule: Schedule = ()
    promise = settings.promise
    if promise.epsilon is not None:
        privacy = PrivacySettings(**{**dict(promise), "epsilon": promise.epsilon})
        spec = privacy.spec(
            promise.epsilon, num_shops=len(roster), num_shoppers=declared, is_masked=settings.rounds.secure
        )
        schedule = private_schedule(model, spec, len(roster))
    min_shops = spec.min_shops if spec is not None else promise.min_shops or _usual(len(roster), settings)
    secure = None
    if settings.rounds.secure:
        secure = Parameters.of(roster, list(keys.values()), min_shops=min_shops, colluders=promise.colluders)
    has_local_steps = any(release.local_steps for release in schedule)
    sizes = tuple(enrolments[shop].public_shoppers for shop in roster) if has_local_steps else ()
    terms = Terms(roster, min_shops, run_id, privacy=spec, schedule=schedule, secure=secure, shop_shoppers=sizes)
    offer = Offer("", {}, terms.to_json(), {shop: key.raw.hex() for shop, key in keys.items()}, items)
    if spec is not None:
        model = private_model(model, outlook(schedule, spec, len(roster)), offer.public_inputs())
    plain = json.loads(json.dumps(offer.terms))  # tuples become lists, as a shop will read them
    return Offer(reference_of(model), settings_of(model), plain, offer.roster, items)


def _usual(num_shops: int, settings: CoordinatorSettings) -> int:
    return usual_min_shops(num_shops, settings.promise.colluders) if settings.rounds.secure else 1


def _read_items(settings: CoordinatorSettings) -> dict[str, list[str]]:
    """Keys in order, titles, categories, as text."""
    about, path = settings.items, Path(settings.items.file)
    try:
        table = pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path, dtype=str)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"items.file = {path}: cannot be read ({type(error).__name__}); give CSV or Parquet"
        ) from error
    if about.key not in table:
        raise ConfigError(
            f"items.file = {path}: has no column {about.key!r}; it has {', '.join(map(str, table.columns))}"
        )
    table = table.dropna(subset=[about.key]).astype({about.key: str}).drop_duplicates(about.key).sort_values(about.key)
    if table.empty:
        raise ConfigError(f"items.file = {path}: holds no items")
    texts = {}
    for name, column in (("titles", about.title), ("categories", about.category)):
        texts[name] = table[column].fillna("").astype(str).tolist() if column in table else []
    if any(texts.values()):
        texts = {name: values or [""] * len(table) for name, values in texts.items()}
    return {"keys": table[about.key].tolist(), **texts}
