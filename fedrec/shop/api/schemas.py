"""What is asked and answered, as the OpenAPI file documents it.

Requests are checked by these models. Answers are written by hand for speed; tests read them back with the models here.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from fedrec.shop.store.rows import MAX_ID_LENGTH

Id = Annotated[str, StringConstraints(min_length=1, max_length=MAX_ID_LENGTH, pattern=r"^[^\x00-\x1f\x7f]+$")]
MOST_EVENTS = 5_000
"""Of one batch."""

MOST_ITEMS = 2_000
"""Of one batch."""


ListNames = Literal["home", "session", "cart", "similar", "bought-together", "popular", "trending", "new"]
SourceName = Literal[
    "personal",
    "session",
    "content",
    "popular",
    "trending",
    "newest",
    "similar",
    "bought_together",
    "new",
    "pinned",
]
InsideName = Literal["none", "joint_dp"]
Kind = Literal["view", "cart", "purchase", "rating", "like", "dislike", "return"]


class _Request(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ListQuery(_Request):
    """What list is wanted."""

    n: int = Field(10, ge=1, le=200, description="Length of the list; shorter where the shop has no more.")
    offset: int = Field(0, ge=0, le=2_000, description="Skip so many of the best.")
    category: tuple[Id, ...] = Field((), max_length=50, description="Only these categories.")
    not_category: tuple[Id, ...] = Field((), max_length=50, description="None of these categories.")
    price_min: float | None = Field(None, ge=0, description="Items without a price are left out.")
    price_max: float | None = Field(None, ge=0, description="Items without a price are left out.")
    in_stock: bool = Field(True, description="Leave out what is known to be out of stock.")
    exclude: tuple[Id, ...] = Field((), max_length=500, description="None of these items.")
    include_bought: bool = Field(False, description="Also items that the shopper had.")
    diversity: float = Field(
        0.0,
        ge=0,
        le=1,
        description="MMR weight: 0 = by score alone, 1 = as different as can be; after 200 places, by score.",
    )
    boost: tuple[str, ...] = Field(
        (),
        max_length=50,
        description="`item=0.5` adds half a standard deviation of the list's scores; negative = less of it.",
    )
    pin: tuple[Id, ...] = Field((), max_length=50, description="Items at the top, in this order.")
    explain: bool = Field(False, description="Say for each item what in the history brought it there.")
    seed: int | None = Field(None, ge=0, lt=2**32, description="Orders equal scores by chance, repeatably.")

    @model_validator(mode="after")
    def _prices(self) -> ListQuery:
        if self.price_min is not None and self.price_max is not None and self.price_min > self.price_max:
            raise ValueError("price_min must not be above price_max")
        return self


class SessionQuery(ListQuery):
    """A list for somebody whom the shop does not know, from what she looked at."""

    items: tuple[Id, ...] = Field(min_length=1, max_length=200, description="Oldest first.")


class CartQuery(ListQuery):
    """What goes with the items of a cart."""

    items: tuple[Id, ...] = Field(min_length=1, max_length=200)
    shopper: Id | None = Field(None, description="Leaves out what she had.")


class EventIn(_Request):
    """Something that a shopper did."""

    event_id: Id = Field(description="The shop's own id; an event that is sent again counts once.")
    shopper: Id
    item: Id
    kind: Kind
    value: float | None = Field(None, ge=-1e9, le=1e9, description="Rating or quantity.")
    timestamp: float | None = Field(None, ge=0, le=4e9, description="Unix seconds; now where it is missing.")
    list_id: Id | None = Field(None, description="Of the list that she clicked it on.")


class EventBatch(_Request):
    """Events; each is taken or refused by itself."""

    events: tuple[EventIn, ...] = Field(min_length=1, max_length=MOST_EVENTS)


class ItemIn(_Request):
    """An item of the catalogue, replacing what was known about it."""

    key: Id
    title: str = Field("", max_length=1_000)
    category: str = Field("", max_length=200)
    price: float | None = Field(None, ge=0, le=1e12)
    stock: int | None = Field(None, ge=0, lt=2**31, description="Missing = not counted, always there.")
    is_hidden: bool = Field(False, description="In no list from the next call on; still learned from.")
    created: float | None = Field(None, ge=0, le=4e9, description="Unix seconds; now where it is missing.")


class ItemBatch(_Request):
    """Items."""

    items: tuple[ItemIn, ...] = Field(min_length=1, max_length=MOST_ITEMS)


class Hidden(_Request):
    """Whether an item is hidden."""

    is_hidden: bool


class ToVersion(_Request):
    """Which model to serve."""

    version: Id | None = Field(None, description="Missing = the one before the current one.")


class _Answer(BaseModel):
    model_config = ConfigDict(extra="forbid")


class ContributionOut(_Answer):
    """What one item of the history adds to a score."""

    item: str
    title: str
    value: float = Field(description="In units of the score.")


class ExplanationOut(_Answer):
    """A score taken apart: base + boost + contributions + others = the score."""

    base: float = Field(description="What no item of the history brings.")
    boost: float = Field(description="What the request asked for.")
    contributions: list[ContributionOut] = Field(description="Of the history, greatest size first.")
    others: float = Field(description="Sum of those of the history that are not listed.")
    attribution: Literal["exact", "leave-one-out"]


class ListedOut(_Answer):
    """One line of a list."""

    position: int = Field(description="In the whole list, 0 = first.")
    item: str
    title: str
    score: float = Field(description="Comparable among items of one source in one list; not a probability.")
    source: SourceName
    explanation: ExplanationOut | None = Field(None, description="With `explain`, where the model has a say.")


class RankedOut(_Answer):
    """A list, and what stands behind it."""

    list_id: str = Field(description="Give it back in events, so that clicks are counted for this list.")
    list_name: ListNames
    reason: SourceName = Field(description="Where the list comes from; items that fill it up say their own source.")
    model_version: str = Field(description="Run id, or `local`.")
    mode: str = Field(description="`alone`: nothing left the shop for it; `none`: no promise; `local`, `distributed`.")
    epsilon_outside: float | None = Field(
        description="What all that ever left the shop can tell of one shopper; null = no bound, 0 = nothing left."
    )
    inside_shop: InsideName = Field(
        description="`none`: the shop's own raw statistics are served; `joint_dp`: private ones and her own history."
    )
    items: list[ListedOut]


class RefusedEvent(_Answer):
    """An event that was not taken."""

    index: int = Field(description="Place in the batch, from 0.")
    event_id: str | None = Field(description="Null where it had none that can be read.")
    detail: str = Field(description="Why.")


class TakenOut(_Answer):
    """What became of a batch: all that is not under `refused` is on disk, and in the next list."""

    accepted: int = Field(description="New.")
    duplicates: int = Field(description="Of an event id that was there already; the first one stays.")
    erased: int = Field(description="Of an erased shopper, older than her erasure; dropped.")
    refused: list[RefusedEvent]


class ItemsOut(_Answer):
    """What became of items."""

    stored: int


class ShopperOut(_Answer):
    """All that the shop holds of a shopper."""

    model_config = ConfigDict(extra="allow")


class ErasureOut(_Answer):
    """What was erased, and what past releases may still tell."""

    num_events: int
    num_impressions: int
    erased_at: str
    is_wiped: bool = Field(description="No byte of her rows is left in the database's files.")
    epsilon_outside: float | None = Field(description="Bounds what past releases tell of her; null = nothing does.")
    past_releases: str
    needs_refresh: bool = Field(
        description="A model was made from events of before, hers too; `fedrec shop refresh --if-erased` makes it anew."
    )
    still_held: list[str] = Field(description="What in the shop still holds something of her, and until when.")


class VersionOut(_Answer):
    """A model that the shop can serve."""

    version: str
    is_current: bool = Field(description="It should be served.")
    is_served: bool = Field(description="It is served now.")


class ModelsOut(_Answer):
    """Which models there are."""

    served: str
    current: str = Field(description="What should be served; another one is served while this one cannot be opened.")
    trouble: str | None = Field(description="Why the current one is not served.")
    is_stale: bool = Field(description="What is served was made with raw events of somebody who was erased since.")
    versions: list[VersionOut]
    split: dict[str, float] = Field(description="Share of shoppers by version, while two are compared.")


class ArmOut(_Answer):
    """Lists shown and clicked."""

    day: str
    list_name: str
    version: str
    arm: str = Field(description="`a` or `b` while two models are compared; empty else, and of lists for nobody known.")
    shown: int = Field(description="Lists.")
    clicked: int = Field(description="Of these, with at least one click, however many they had.")


class ClickThroughOut(_Answer):
    """Click-through by day, list, model version and arm."""

    rows: list[ArmOut]


class PrivacyOut(_Answer):
    """What is promised, spent and left."""

    mode: str
    epsilon_outside: float | None
    inside_shop: str
    ledger: dict[str, float] = Field(description="Of all runs together; empty before a private run.")


class HealthOut(_Answer):
    """Whether the server can answer."""

    status: Literal["ok", "degraded", "starting"]
    detail: str | None = Field(None, description="Why it is degraded; says no shop's name.")
