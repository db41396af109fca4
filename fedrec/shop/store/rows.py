"""What goes into a shop's store and what comes out: events, items, keys, impressions; checked when built.

Identifiers are text of 1 to 256 printable characters. Times are seconds since 1970, UTC; 0 = unknown, older than all.
"""

from __future__ import annotations

import hashlib
import unicodedata
from dataclasses import dataclass
from enum import IntEnum, StrEnum
from typing import NamedTuple

from fedrec.errors import DataError

MAX_ID_LENGTH = 256
MAX_TEXT_LENGTH = 4096
MAX_AHEAD_S = 3600.0
"""How far a shop's clocks may run ahead: an event later than that would be every list's most recent one until then."""
KEEP_IMPRESSIONS_S = 90 * 86_400.0
MAX_NUMBER = 1e15


class EventKind(StrEnum):
    """What a shopper did; a dislike and a return are negative, and so is a rating that the shop calls low."""

    VIEW = "view"
    CART = "cart"
    PURCHASE = "purchase"
    RATING = "rating"
    LIKE = "like"
    DISLIKE = "dislike"
    RETURN = "return"


NEGATIVE_KINDS = frozenset({EventKind.DISLIKE, EventKind.RETURN})
TRAINING_KINDS = frozenset({EventKind.PURCHASE, EventKind.RATING, EventKind.LIKE})
"""What a model is trained on unless the shop says otherwise: what she has, not what she looked at."""


class StoredEvent(NamedTuple):
    """An event as the store gives it back.

    Attributes:
        sequence: its place in the order of arrival; rises, with gaps.
        event_id, shopper, item: text.
        kind: what she did.
        value: a rating, or a quantity; None where there is none.
        timestamp: seconds since 1970 UTC; 0 = unknown.
        list_id: the list that she clicked in; None = none.
    """

    sequence: int
    event_id: str
    shopper: str
    item: str
    kind: EventKind
    value: float | None
    timestamp: float
    list_id: str | None


class Said(NamedTuple):
    """What an event says to the lists.

    Attributes:
        item, kind: text.
        value: as `StoredEvent`.
    """

    item: str
    kind: str
    value: float | None


@dataclass(frozen=True, slots=True, repr=False)
class Event:
    """What a shopper did, as the shop says it.

    Attributes:
        shopper, item: text.
        kind: see `EventKind`.
        timestamp: seconds since 1970 UTC; 0 = unknown.
        value: a rating (needed there), or a quantity; finite.
        event_id: the same event sent twice counts once; "" = made from all the rest, so that two events that agree in
            everything are one.
        list_id: the list that she clicked in; None = none.
    """

    shopper: str
    item: str
    kind: EventKind
    timestamp: float
    value: float | None = None
    event_id: str = ""
    list_id: str | None = None

    def __post_init__(self) -> None:
        check_id("shopper", self.shopper)
        check_id("item", self.item)
        if type(self.kind) is not EventKind:
            object.__setattr__(self, "kind", read_kind(self.kind))
        _check_time("timestamp", self.timestamp)
        if self.value is not None:
            _check_number("value", self.value)
        elif self.kind is EventKind.RATING:
            raise DataError("a rating has no value; give the rating as value")
        if self.list_id is not None:
            check_id("list_id", self.list_id)
        if self.event_id:
            check_id("event_id", self.event_id)
        else:
            made = content_id(self.shopper, self.item, self.kind, self.value, self.timestamp, self.list_id)
            object.__setattr__(self, "event_id", made)

    def __repr__(self) -> str:
        return f"Event({self.kind})"


@dataclass(frozen=True, slots=True)
class Item:
    """What the shop says of an item.

    Attributes:
        key: text.
        title, category: text, "" = unknown; several categories joined by "|".
        price: > 0; None = unknown.
        stock: 0 = sold out; None = not counted, always there.
        is_hidden: never listed.
        created: seconds since 1970 UTC; None = when the store first heard of it.
    """

    key: str
    title: str = ""
    category: str = ""
    price: float | None = None
    stock: int | None = None
    is_hidden: bool = False
    created: float | None = None

    def __post_init__(self) -> None:
        check_id("item", self.key)
        for name in ("title", "category"):
            _check_text(name, getattr(self, name))
        if self.price is not None:
            _check_number("price", self.price)
            if not self.price >= 0:
                raise DataError(f"price {self.price}: give 0 or more, or leave it out")
        if self.stock is not None and not 0 <= self.stock < 2**31:
            raise DataError(f"stock {self.stock}: give 0 or more, or leave it out where it is not counted")
        if self.created is not None:
            _check_time("created", self.created)


class ItemChange(NamedTuple):
    """An item as it is after its last change.

    Attributes:
        sequence: of that change; rises.
        item: what is known of it; of a deleted one the key alone.
        is_deleted: it is no longer sold here; its events stay.
    """

    sequence: int
    item: Item
    is_deleted: bool


@dataclass(frozen=True)
class Appended:
    """What became of events.

    Attributes:
        accepted: new and stored.
        duplicates: of an event id that was there already; the first one stays.
        erased: of a shopper who was erased, and older than her erasure; dropped.
    """

    accepted: int
    duplicates: int
    erased: int = 0


class KeyScope(IntEnum):
    """What a key allows; each also what is before it."""

    READ = 1
    WRITE = 2
    ADMIN = 3


@dataclass(frozen=True, slots=True)
class Key:
    """A key of the shop's API, without its secret.

    Attributes:
        id: by which it is listed and revoked; no secret.
        name: what it is for, in the shop's words.
        scope: what it allows.
        created: seconds since 1970 UTC.
        revoked: the same; None = it is valid.
    """

    id: str
    name: str
    scope: KeyScope
    created: float
    revoked: float | None = None


@dataclass(frozen=True, slots=True, repr=False)
class Impression:
    """A list that was shown; for what counts as a click on it see `Store.click_through`.

    Attributes:
        list_id: of this one answer.
        list_name: home, similar, …
        version: of the model behind it.
        arm: of a comparison of models; "" = none.
        timestamp: seconds since 1970 UTC.
        shopper: None = nobody known.
        items: keys of what was on it; None = nobody noted them.
    """

    list_id: str
    list_name: str
    version: str
    arm: str
    timestamp: float
    shopper: str | None = None
    items: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        check_id("list_id", self.list_id)
        for item in self.items or ():
            check_id("item", item)
        if self.shopper is not None:
            check_id("shopper", self.shopper)
        _check_time("timestamp", self.timestamp)

    def __repr__(self) -> str:
        return f"Impression({self.list_name!r})"


class ClickThrough(NamedTuple):
    """Lists of one name, version and arm on one day.

    Attributes:
        day: since 1970 UTC.
        shown: lists.
        clicked: lists with at least one click.
    """

    day: int
    list_name: str
    version: str
    arm: str
    shown: int
    clicked: int


@dataclass(frozen=True)
class Erasure:
    """What was erased of a shopper.

    Attributes:
        num_events, num_impressions: rows that are gone.
        erased_at: seconds since 1970 UTC; what she did until then is not taken again.
        is_wiped: no byte of her rows is left in the database's files (SQLite); False = not yet, since somebody reads.
    """

    num_events: int
    num_impressions: int
    erased_at: float
    is_wiped: bool


def read_kind(kind: str) -> EventKind:
    """The kind of that name.

    Raises:
        DataError: there is none.
    """
    try:
        return EventKind(kind)
    except ValueError as error:
        raise DataError(f"kind {str(kind)[:40]!r}: give one of {', '.join(EventKind)}") from error


def check_id(name: str, value: str) -> str:
    """An identifier.

    Raises:
        DataError: empty, too long, not text, or with characters that cannot be printed. The value is not in the
            message, which may leave the shop.
    """
    if not isinstance(value, str) or not 0 < len(value) <= MAX_ID_LENGTH:
        raise DataError(f"{name}: give text of 1 to {MAX_ID_LENGTH} characters")
    if not value.isprintable():
        raise DataError(f"{name}: has control characters or others that cannot be printed; leave them out")
    return value


def check_not_ahead(timestamp: float, now: float) -> None:
    """Refuse what has not happened yet.

    Args:
        timestamp, now: seconds since 1970 UTC.
    Raises:
        DataError: later than now by more than `MAX_AHEAD_S`.
    """
    if not timestamp <= now + MAX_AHEAD_S:
        raise DataError(
            f"timestamp {timestamp:.0f} is {timestamp - now:.0f} s ahead of this machine's clock; give seconds "
            f"since 1970 UTC, at most {MAX_AHEAD_S:.0f} s ahead"
        )


def content_id(
    shopper: str, item: str, kind: str, value: float | None, timestamp: float, list_id: str | None = None
) -> str:
    """The id of an event that has none of its own: it depends on everything else.

    It begins with the time, so that a database's index of many events in order grows at its end.
    """
    parts = (shopper, item, kind, "" if value is None else repr(float(value)), repr(float(timestamp)), list_id or "")
    # No part has a control character, so that a separator keeps them apart.
    return f"c{int(timestamp):010x}{hashlib.blake2b(chr(31).join(parts).encode(), digest_size=12).hexdigest()}"


def _check_number(name: str, value: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= MAX_NUMBER:
        raise DataError(f"{name} {value!r}: give a finite number")


def _check_time(name: str, value: float) -> None:
    _check_number(name, value)
    if not 0 <= value < 253_402_300_800:
        raise DataError(f"{name} {value}: give seconds since 1970 UTC")


def _check_text(name: str, value: str) -> None:
    if not isinstance(value, str) or len(value) > MAX_TEXT_LENGTH:
        raise DataError(f"{name}: give text of at most {MAX_TEXT_LENGTH} characters")
    if not value.isprintable() and any(unicodedata.category(one) in ("Cc", "Cs") for one in value):
        raise DataError(f"{name}: has control characters; leave them out")
