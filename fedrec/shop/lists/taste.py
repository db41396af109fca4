"""What a shopper's events say of her taste: which items speak for her, how strongly, and what she must not see."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np

from fedrec.errors import ConfigError
from fedrec.shop.lists.shelf import NOT_HERE, Shelf


class HistoryEvent(Protocol):
    """An event as the store has it."""

    @property
    def item(self) -> str: ...

    @property
    def kind(self) -> str: ...

    @property
    def value(self) -> float | None: ...


@dataclass(frozen=True)
class TasteSettings:
    """How much an event of each kind says.

    Attributes:
        strengths: by kind, in [0, 1]; 0 = nothing. A kind that is not named says nothing.
        good_rating: ratings from here on have the strength of their kind; lower ones say only that she had the item.
        had: kinds after which an item is hers, and is listed again only where that is asked for.
        against: kinds after which an item is never listed, until an event of full strength takes it back.
    """

    strengths: Mapping[str, float] = field(
        default_factory=lambda: {"purchase": 1.0, "like": 1.0, "rating": 1.0, "cart": 0.5, "view": 0.2}
    )
    good_rating: float = 4.0
    had: frozenset[str] = frozenset({"purchase", "rating"})
    against: frozenset[str] = frozenset({"dislike", "return"})

    def __post_init__(self) -> None:
        for kind, strength in self.strengths.items():
            if not 0 <= strength <= 1:
                raise ConfigError(f"strength of {kind} = {strength}: give a number from 0 to 1")
            if strength and kind in self.against:
                raise ConfigError(f"strength of {kind} = {strength}: it speaks against an item, leave it out")


@dataclass(frozen=True, repr=False)
class Taste:
    """One shopper's history in a shelf's positions, or an anonymous session's.

    Attributes:
        items: int64, distinct; what speaks for her, by her last event with each, oldest first.
        strengths: float64, > 0, (len(items),).
        had: int64; hers already.
        against: int64; never to be listed.
        kept_out: int64; not to be listed here and now: what a session shows or a cart holds.
    """

    items: np.ndarray
    strengths: np.ndarray
    had: np.ndarray
    against: np.ndarray
    kept_out: np.ndarray = field(default_factory=lambda: _positions(()))

    def __repr__(self) -> str:
        return f"Taste({len(self.items)} items)"

    def latest(self, limit: int) -> Taste:
        """With at most so many of the last items that speak for her."""
        return (
            self
            if len(self.items) <= limit
            else replace(self, items=self.items[-limit:], strengths=self.strengths[-limit:])
        )


def strength_of(event: HistoryEvent, settings: TasteSettings) -> float:
    """What one event says for its item, in [0, 1]; one against it says 0."""
    if event.kind == "rating" and (event.value is None or event.value < settings.good_rating):
        return 0.0
    return settings.strengths.get(event.kind, 0.0)


def taste_of(events: Iterable[HistoryEvent], shelf: Shelf, settings: TasteSettings) -> Taste:
    """A shopper's taste from her events.

    An item's strongest event counts, since the last one against it; items that the shelf does not hold say nothing.

    Args:
        events: hers, oldest first.
    """
    spoken: dict[int, float] = {}
    had: set[int] = set()
    against: set[int] = set()
    told = list(events)
    for place, event in zip(shelf.places(event.item for event in told), told, strict=True):
        if place == NOT_HERE:
            continue
        kind = event.kind
        strength = strength_of(event, settings)
        if kind in settings.had:
            had.add(place)
        if kind in settings.against:
            against.add(place)
            spoken.pop(place, None)
        elif strength >= 1:
            against.discard(place)
        if strength > 0 and place not in against:
            spoken[place] = max(strength, spoken.pop(place, 0.0))
    return Taste(_positions(spoken), np.array(list(spoken.values()), np.float64), _positions(had), _positions(against))


def taste_for(keys: Iterable[str], shelf: Shelf) -> Taste:
    """An anonymous session's, or a cart's: these items alone, each with full strength, none of them to be listed."""
    items = np.array(list(dict.fromkeys(shelf.positions(keys).tolist())), np.int64)
    return replace(NOBODY, items=items, strengths=np.ones(len(items)), kept_out=items)


def _positions(places: Iterable[int]) -> np.ndarray:
    return np.array(list(places), np.int64)


NOBODY = Taste(_positions(()), np.empty(0), _positions(()), _positions(()))
"""No history at all."""
