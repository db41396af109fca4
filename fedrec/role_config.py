"""The files of a deployment, ``coordinator.toml`` and ``shop.toml``: checked and frozen, and as they begin.

Relative paths in a file are relative to the file.
"""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from fedrec.config import ModelSection, explain, read_toml
from fedrec.data.sources import DataSettings
from fedrec.errors import ConfigError
from fedrec.privacy.spec import Mode
from fedrec.shop.lists.filling import ListSettings
from fedrec.shop.lists.serving_files import PreparationSettings, Serving
from fedrec.shop.lists.serving_model import InsideShop
from fedrec.shop.lists.serving_settings import ServingSettings, Split
from fedrec.shop.lists.taste import TasteSettings
from fedrec.shop.lists.trends import TrendSettings
from fedrec.shop.member import MemberSettings
from fedrec.shop.personalise import ShopPersonalisation
from fedrec.shop.policy import Policy, check_name
from fedrec.shop.store.rows import NEGATIVE_KINDS, TRAINING_KINDS, EventKind

if TYPE_CHECKING:
    from fedrec.shop.store.store import Store

COORDINATOR_FILE = "coordinator.toml"
SHOP_FILE = "shop.toml"
TOMBSTONES_FILE = "store.tombstones"
_OF_FILES = ("events", "url", "query", "in_parts", "items", "columns", "item_key")
Name = Annotated[str, AfterValidator(check_name)]
Port = Annotated[int, Field(ge=0, le=65535)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class AddressSection(_Section):
    """Where the coordinator is.

    Attributes:
        host: interface that it listens on.
        port: for shops' agents, over TLS.
        public_host: name or address under which shops reach it; the certificate is for it.
        metrics_port: health and Prometheus metrics, on 127.0.0.1 alone; 0 = a free one.
    """

    host: str = "0.0.0.0"
    port: Port = 7443
    public_host: str = "localhost"
    metrics_port: Port = 7480


class ItemsSection(_Section):
    """The federation's item list: public, declared, never computed from events.

    Attributes:
        file: CSV or Parquet.
        key, title, category: its columns; title and category may be missing.
    """

    file: str
    key: str = "item"
    title: str = "title"
    category: str = "category"


class PromiseSection(_Section):
    """What is promised to every shopper; without epsilon nothing is.

    Attributes: as in `fedrec.privacy.spec.PrivacySpec`; None takes the usual value.
    """

    epsilon: float | None = None
    delta: float | None = None
    mode: Mode = Mode.DISTRIBUTED
    min_shops: Annotated[int, Field(ge=1)] | None = None
    colluders: Annotated[int, Field(ge=0)] = 1
    max_shops_per_person: Annotated[int, Field(ge=1)] = 1
    public_shoppers: Annotated[int, Field(ge=1)] | None = None
    max_shoppers: Annotated[int, Field(ge=1)] | None = None


class RoundsSection(_Section):
    """How rounds are run.

    Attributes:
        secure: secure aggregation; without it the coordinator sees each shop's sum.
        deadline_s: how long one exchange waits for a shop that is connected.
        patience_s: how long a round with too few shops waits for them to come back.
        start_s: how long the run waits for all shops at its start; then it begins with min_shops of them.
    """

    secure: bool = True
    deadline_s: Annotated[float, Field(gt=0)] = 600.0
    patience_s: Annotated[float, Field(ge=0)] = 3600.0
    start_s: Annotated[float, Field(gt=0)] = 3600.0


class CoordinatorSettings(_Section):
    """``coordinator.toml``."""

    name: Name
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    address: AddressSection = AddressSection()
    items: ItemsSection
    model: ModelSection = ModelSection()
    promise: PromiseSection = PromiseSection()
    rounds: RoundsSection = RoundsSection()


class ShopDataSection(_Section):
    """Where the events come from that the shop trains on; see `fedrec.data.sources.DataSettings`.

    Attributes:
        store: the shop's own store; then no file, URL or query.
        train_on: kinds of the store's events that say that a shopper has an item.
        validation: ``leave-last`` or ``random-share``: which events a new model is judged on; ``none`` judges nothing.
    """

    store: bool = False
    train_on: Annotated[frozenset[EventKind], Field(min_length=1)] = TRAINING_KINDS
    events: str | None = None
    url: str | None = None
    query: str | None = None
    in_parts: bool = False
    items: str | None = None
    columns: dict[str, str] = {}
    item_key: str | None = None
    min_rating: float | None = None
    validation: Literal["leave-last", "random-share", "none"] = "leave-last"

    @model_validator(mode="after")
    def _one_source(self) -> ShopDataSection:
        if self.store and (given := [name for name in _OF_FILES if getattr(self, name)]):
            raise ValueError(f"store = true takes no {given[0]}; import files with fedrec shop import")
        if wrong := self.train_on & NEGATIVE_KINDS:
            raise ValueError(f"train_on: {min(wrong)} says that a shopper does not have an item")
        return self

    def data_settings(self) -> DataSettings:
        """What to read where it is not the store: each row by itself, so that none changes how others are read."""
        wanted = {field.name for field in dataclasses.fields(DataSettings)}
        return DataSettings(**{name: value for name, value in self if name in wanted}, row_by_row=True)


class StoreSection(_Section):
    """Where what happens in the shop is kept.

    Attributes:
        url: ``sqlite:///FILE`` or ``postgresql://…``.
    """

    url: str = "sqlite:///store.sqlite"


class SplitSection(_Section):
    """Two models compared; see `fedrec.shop.lists.serving_settings.Split`."""

    version: str
    share: float


class ServingSection(_Section):
    """How the recommend API serves.

    Attributes:
        inside_shop: ``none``: with the shop's own raw statistics; ``joint_dp``: what was released with noise, public
            item texts, and the reader's own history alone.
        max_weights: kept of each item.
        requests_per_s: of one key; 0 = no limit.
        new_share: of a list's places, for items that the model does not know.
        strengths: by kind of event, what it says for its item, in [0, 1]; kinds that are not named keep theirs.
        good_rating: ratings from here on speak for an item.
        trend_half_life_days: after so many days an event counts half.
        split: a comparison of two models.
        text_encoder: folder of a sentence-transformers model that items' texts are compared by (extra ``text``);
            None = by their words.
    """

    inside_shop: InsideShop = InsideShop.NONE
    max_weights: Annotated[int, Field(ge=1)] = 200
    requests_per_s: float = 1_000.0
    new_share: float = 0.1
    strengths: dict[EventKind, float] = {}
    good_rating: float = 4.0
    trend_half_life_days: float = 7.0
    split: SplitSection | None = None
    text_encoder: Annotated[str, Field(min_length=1)] | None = None

    @model_validator(mode="after")
    def _is_possible(self) -> ServingSection:
        try:
            self.settings()
        except ConfigError as error:
            raise ValueError(str(error)) from error
        return self

    def settings(self) -> ServingSettings:
        """For the server."""
        split = None if self.split is None else Split(self.split.version, self.split.share)
        trends = TrendSettings(self.trend_half_life_days * 86_400.0)
        strengths = {**TasteSettings().strengths, **{kind.value: value for kind, value in self.strengths.items()}}
        taste = TasteSettings(strengths, self.good_rating)
        return ServingSettings(self.requests_per_s, split, ListSettings(taste, new_share=self.new_share), trends)

    def preparation(self) -> PreparationSettings:
        """For making a model ready."""
        kind = Serving.JOINT_DP if self.inside_shop is InsideShop.JOINT_DP else Serving.RAW
        return PreparationSettings(kind, self.max_weights)


class ShopSettings(_Section):
    """``shop.toml``.

    Attributes:
        public_shoppers: declared when the shop joins a federation; 0 = it is in none.
        idle_after_s: after so long without a run the agent gives back the memory that runs take.
    """

    name: Name
    public_shoppers: Annotated[int, Field(ge=0)] = 0
    metrics_port: Port = 7481
    idle_after_s: Annotated[float, Field(gt=0)] = 60.0
    data: ShopDataSection = ShopDataSection(store=True)
    store: StoreSection = StoreSection()
    serving: ServingSection = ServingSection()
    policy: Policy = Policy()
    personalisation: ShopPersonalisation = ShopPersonalisation()

    def member(self) -> MemberSettings:
        """All but the data.

        Raises:
            ConfigError: the shop is in no federation.
        """
        if not self.public_shoppers:
            raise ConfigError(
                f"shop {self.name} is in no federation: public_shoppers is 0; join with fedrec shop enrol"
            )
        is_joint_dp = self.serving.inside_shop is InsideShop.JOINT_DP
        return MemberSettings(self.name, self.public_shoppers, self.policy, self.personalisation, is_joint_dp)


def read_coordinator(folder: Path) -> CoordinatorSettings:
    """Read ``coordinator.toml``.

    Raises:
        ConfigError: missing, no TOML, an unknown key, or a value out of range.
    """
    path = folder / COORDINATOR_FILE
    values = read_toml(path, "make one with fedrec coordinator init")
    _absolute(values, "items", ("file",), folder)
    return _checked(CoordinatorSettings, values, path)


def read_shop(folder: Path) -> ShopSettings:
    """Read ``shop.toml``.

    Raises:
        ConfigError: as `read_coordinator`.
    """
    path = folder / SHOP_FILE
    values = read_toml(path, "make one with fedrec shop init or enrol")
    _absolute(values, "data", ("events", "items"), folder)
    _absolute(values, "serving", ("text_encoder",), folder)
    settings: ShopSettings = _checked(ShopSettings, values, path)
    kind, slashes, file = settings.store.url.partition(":///")
    if kind == "sqlite" and slashes and file:
        url = f"sqlite:///{(folder / file).absolute()}"
        settings = settings.model_copy(update={"store": StoreSection(url=url)})
    return settings


def open_store(folder: Path, settings: ShopSettings) -> Store:
    """The store of a shop's folder; made where it is not.

    Raises:
        ConfigError, StoreError: see `fedrec.shop.store.Store`.
    """
    from fedrec.shop.store.store import Store

    return Store.open(settings.store.url, folder / TOMBSTONES_FILE)


def coordinator_toml(name: str, *, public_host: str, items: str) -> str:
    """A new coordinator's file, commented."""
    return _COORDINATOR.format(name=name, public_host=public_host, items=_quoted(items))


def shop_toml(name: str, *, public_shoppers: int, events: str | None, items: str | None) -> str:
    """A new shop's file, commented.

    Args:
        events, items: files; without events the shop trains on what is in its store.
    """
    if events is None:
        return _SHOP.format(name=name, public_shoppers=public_shoppers, data_lines=_STORE_LINES)
    items_line = f"items = {_quoted(items)}" if items else '# items = "items.csv"        # titles, categories, prices'
    data_lines = f"events = {_quoted(events)}\n{items_line}"
    return _SHOP.format(name=name, public_shoppers=public_shoppers, data_lines=data_lines)


def check_host(host: str) -> str:
    """Name or address under which shops reach a coordinator.

    Raises:
        ConfigError: it cannot be one.
    """
    if not re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?", host):
        raise ConfigError(f"--host {host!r}: give a name like books.example.org, or an IPv4 address, without the port")
    return host


def _quoted(text: str) -> str:
    """A TOML string."""
    return json.dumps(text, ensure_ascii=False)


def _absolute(values: dict[str, Any], section: str, names: tuple[str, ...], folder: Path) -> None:
    found = values.get(section)
    if not isinstance(found, dict):
        return
    for name in names:
        if isinstance(found.get(name), str) and found[name]:
            found[name] = str((folder / found[name]).absolute())


def _checked(kind: type[Any], values: dict[str, Any], path: Path) -> Any:
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        findings = dict.fromkeys(explain(entry, kind) for entry in error.errors()[:4])
        raise ConfigError(f"{path}: {'; '.join(findings)}") from None


_COORDINATOR = """\
# A coordinator of fedrec. It plans rounds and adds up what shops send; it never sees an event.
name = "{name}"
seed = 0

[address]
host = "0.0.0.0"             # interface to listen on
port = 7443                  # for shops, over TLS
public_host = "{public_host}"    # how shops reach it; the certificate is for this name
metrics_port = 7480          # health and metrics, on 127.0.0.1 alone

# The items that shops have in common: public, the same for everybody.
[items]
file = {items}
key = "item"
title = "title"              # may be missing in the file, as may category
category = "category"

[model]
name = "ease"                # fedrec models lists what there is
# settings = {{ }}

# What is promised to every shopper. Shops' own policies can only make it stricter.
[promise]
epsilon = 2.0
delta = 1e-6
mode = "distributed"         # shops share the noise, under masks; local: each adds all of it
colluders = 1                # shops that may work with the coordinator

[rounds]
secure = true                # the coordinator sees sums over shops alone
deadline_s = 600.0           # for one answer of a connected shop
patience_s = 3600.0          # how long a round that lacks shops waits for them
start_s = 3600.0             # how long the run waits for all shops before it begins with enough of them
"""

_STORE_LINES = """\
store = true                 # train on what is in [store], without who was erased
# train_on = ["purchase", "rating", "like"]   # also cart, view"""

_SHOP = """\
# A shop in a fedrec federation. Events stay here; what may leave is decided by [policy].
name = "{name}"
public_shoppers = {public_shoppers}      # declared, one significant digit; public; 0 = in no federation
metrics_port = 7481          # health and metrics, on 127.0.0.1 alone
idle_after_s = 60.0          # so long without a run, and the agent gives back the memory that runs take

[data]
{data_lines}
validation = "leave-last"    # what a new model is judged on before it is served

# Where the website's events and items are kept: a file here, or postgresql://user@host/name
[store]
url = "sqlite:///store.sqlite"

# What fedrec shop serve answers.
[serving]
inside_shop = "none"         # joint_dp: lists from private statistics and the reader's own history alone
requests_per_s = 1000        # of one key; 0 = no limit
# strengths = {{ view = 0.2, cart = 0.5 }}     # what events say beside a purchase, which is 1
# split = {{ version = "RUN", share = 0.1 }}   # another model for a tenth of the shoppers
# text_encoder = "encoder"     # folder of a sentence-transformers model, for items without events: fedrec[text]

[personalisation]
own_statistics_min_shoppers = 3   # pairs of items that fewer of its own shoppers bought do not count

# The coordinator can only ask for less than this.
[policy]
max_epsilon = 2.0            # of one run, per shopper
max_delta = 1e-6
budget_epsilon = 4.0         # of all runs together; fixed when the ledger is begun
budget_delta = 2e-6
budget_period = "lifetime"   # or year
max_aborts = 2               # repeated rounds that one run may charge
allow_research = false       # true lets raw sums leave: never with real customers
require_masks = true
min_shops = 3                # fewest shops of a sum
min_colluders = 1
max_rounds = 200
max_sampling_rate = 1.0
max_message_mb = 1024.0      # of one message of the coordinator: a larger one is refused unread
models = []                  # package.module:Class of models beside fedrec's own
roster = ""                  # fingerprint of the roster, once you compared it with the other shops
"""

__all__ = [
    "CoordinatorSettings",
    "ShopSettings",
    "coordinator_toml",
    "open_store",
    "read_coordinator",
    "read_shop",
    "shop_toml",
]
