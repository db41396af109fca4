"""The shop's catalogue in arrays, and which of it a list may show."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np

from fedrec.errors import ConfigError
from fedrec.models.hashed_words import HashedWords, ItemWords, category_names

NOT_HERE = -1
"""Position of a key that the shelf does not hold."""


class ShelfItem(Protocol):
    """An item as the store has it."""

    @property
    def key(self) -> str: ...

    @property
    def title(self) -> str: ...

    @property
    def category(self) -> str:
        """Several joined by "|"; "" = unknown."""
        ...

    @property
    def price(self) -> float | None: ...

    @property
    def stock(self) -> int | None:
        """None = not counted, always in stock."""
        ...

    @property
    def is_hidden(self) -> bool: ...

    @property
    def created(self) -> float | None:
        """Seconds since 1970; None = unknown, older than all."""
        ...


@dataclass(frozen=True)
class Wanted:
    """Which items a list may show.

    Attributes:
        categories_in: at least one of an item's categories must be among them; empty = any.
        categories_out: none of its categories may be.
        price_min, price_max: inclusive; with either an item without a price is left out.
        is_in_stock: leaves out what is known to be out of stock.
    """

    categories_in: frozenset[str] = frozenset()
    categories_out: frozenset[str] = frozenset()
    price_min: float | None = None
    price_max: float | None = None
    is_in_stock: bool = True

    def __post_init__(self) -> None:
        for name in ("price_min", "price_max"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < np.inf:
                raise ConfigError(f"{name} = {value}: give a number of at least 0")
        if self.price_min is not None and self.price_max is not None and self.price_min > self.price_max:
            raise ConfigError(f"price_min = {self.price_min} is above price_max = {self.price_max}: nothing costs that")


@dataclass(frozen=True, repr=False)
class Shelf:
    """The catalogue at one moment; a change makes a new one, so readers need no lock. Positions never change.

    Attributes:
        place: position by key; shared with later shelves, so only `position` may read it.
        keys, titles: of each item; shared likewise, valid up to ``num_items``.
        groups: distinct category texts, shared likewise.
        group: int32, (num_items,); place in ``groups``.
        price: float64, (num_items,); NaN = unknown.
        is_out_of_stock, is_hidden: bool, (num_items,); deleted items are hidden.
        created: float64, (num_items,); seconds since 1970.
        words: of titles and categories; public content.
    """

    place: dict[str, int] = field(default_factory=dict)
    keys: list[str] = field(default_factory=list)
    titles: np.ndarray = field(default_factory=lambda: np.empty(0, object))
    groups: dict[str, int] = field(default_factory=dict)
    group: np.ndarray = field(default_factory=lambda: np.empty(0, np.int32))
    price: np.ndarray = field(default_factory=lambda: np.empty(0))
    is_out_of_stock: np.ndarray = field(default_factory=lambda: np.empty(0, bool))
    is_hidden: np.ndarray = field(default_factory=lambda: np.empty(0, bool))
    created: np.ndarray = field(default_factory=lambda: np.empty(0))
    words: ItemWords = field(default_factory=HashedWords)
    _masks: dict[Wanted, np.ndarray] = field(default_factory=dict, init=False, compare=False)

    @classmethod
    def of(cls, items: Iterable[ShelfItem]) -> Shelf:
        """A shelf of these items, in this order."""
        return cls().with_items(items)

    @property
    def num_items(self) -> int:
        """Hidden and deleted ones too."""
        return len(self.group)

    def __repr__(self) -> str:
        return f"Shelf({self.num_items} items)"

    def position(self, key: str) -> int:
        """Of an item, `NOT_HERE` if it is none of this shelf's."""
        found = self.place.get(key, NOT_HERE)
        return found if found < self.num_items else NOT_HERE

    def positions(self, keys: Iterable[str]) -> np.ndarray:
        """int64: those of the keys that are here, in their order."""
        return np.array([one for one in self.places(keys) if one != NOT_HERE], np.int64)

    def places(self, keys: Iterable[str]) -> list[int]:
        """Of each of the keys its position, `NOT_HERE` where it is none of this shelf's."""
        place, num_items = self.place, self.num_items
        return [found if (found := place.get(key, NOT_HERE)) < num_items else NOT_HERE for key in keys]

    def category(self, position: int) -> str:
        """The category text of an item."""
        return next(text for text, code in self.groups.items() if code == self.group[position])

    def texts(self, positions: np.ndarray) -> list[tuple[str, str]]:
        """Title and category text of some items."""
        names = list(self.groups)
        codes = self.group[positions].tolist()
        return [(title, names[code]) for title, code in zip(self.titles[positions].tolist(), codes, strict=True)]

    def with_items(self, items: Iterable[ShelfItem]) -> Shelf:
        """The shelf after an upsert: known keys change in place, new ones come last.

        Only the newest shelf may grow: it shares its keys with the older ones.
        """
        latest = {item.key: item for item in items}
        rows = list(latest.values())
        if len(self.keys) != self.num_items:
            raise ConfigError("this shelf is not the newest: only the newest one may change")
        for item in rows:
            if self.place.setdefault(item.key, len(self.keys)) == len(self.keys):
                self.keys.append(item.key)
        at = np.array([self.place[item.key] for item in rows], np.int64)
        codes = [self.groups.setdefault(item.category or "", len(self.groups)) for item in rows]
        changed: Mapping[str, Sequence[object]] = {
            "titles": [item.title or "" for item in rows],
            "group": codes,
            "price": [np.nan if item.price is None else item.price for item in rows],
            "is_out_of_stock": [item.stock is not None and item.stock <= 0 for item in rows],
            "is_hidden": [item.is_hidden for item in rows],
            "created": [item.created or 0.0 for item in rows],
        }
        arrays: dict[str, Any] = {}
        for name, values in changed.items():
            old = getattr(self, name)
            arrays[name] = new = np.empty(len(self.keys), old.dtype)
            new[: len(old)] = old
            new[at] = values
        return replace(self, words=self._words_after(at, arrays["titles"], arrays["group"], rows), **arrays)

    def _words_after(
        self, at: np.ndarray, titles: np.ndarray, group: np.ndarray, rows: Sequence[ShelfItem]
    ) -> ItemWords:
        """Content after an upsert; a new price or stock leaves it as it is."""
        old = self.num_items
        is_changed = [
            place >= old or titles[place] != self.titles[place] or group[place] != self.group[place]
            for place in at.tolist()
        ]
        texts = [
            (row.title or "", row.category or "") for row, changed in zip(rows, is_changed, strict=True) if changed
        ]
        return self.words.with_items(at[is_changed], texts) if texts else self.words

    def with_hidden(self, keys: Iterable[str], *, is_hidden: bool = True) -> Shelf:
        """The shelf with these items hidden (or deleted), or shown again; unknown keys do nothing."""
        changed = self.is_hidden.copy()
        changed[self.positions(keys)] = is_hidden
        return replace(self, is_hidden=changed)

    def mask(self, wanted: Wanted) -> np.ndarray:
        """bool, (num_items,): what a list may show. Kept for the next call: never write into it."""
        found = self._masks.get(wanted)
        if found is None:
            found = self._mask(wanted)
            if len(self._masks) >= _MASKS_KEPT:
                self._masks.clear()
            self._masks[wanted] = found
        return found

    def _mask(self, wanted: Wanted) -> np.ndarray:
        is_shown = ~self.is_hidden
        if wanted.is_in_stock:
            is_shown &= ~self.is_out_of_stock
        if wanted.categories_in:
            is_shown &= self._by_group(lambda names: not names.isdisjoint(wanted.categories_in))
        if wanted.categories_out:
            is_shown &= self._by_group(lambda names: names.isdisjoint(wanted.categories_out))
        if wanted.price_min is not None:
            is_shown &= self.price >= wanted.price_min  # False for NaN
        if wanted.price_max is not None:
            is_shown &= self.price <= wanted.price_max
        return is_shown

    def _by_group(self, rule: Callable[[frozenset[str]], bool]) -> np.ndarray:
        answers = [rule(frozenset(category_names(text))) for text in list(self.groups)]
        return np.array(answers, bool)[self.group]


_MASKS_KEPT = 64
"""Filters remembered for each shelf: a website asks for the same few."""
