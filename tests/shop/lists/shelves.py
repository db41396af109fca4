"""Small catalogues, events and models for the tests of lists."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fedrec.shop.lists.neighbours import Neighbours
from fedrec.shop.lists.serving_model import InsideShop, ItemItem, Served, Term
from fedrec.shop.lists.shelf import Shelf

RAW = Served("r1", "distributed", 2.0, InsideShop.NONE)
JOINT = Served("r1", "distributed", 2.0, InsideShop.JOINT_DP)


@dataclass(frozen=True)
class Item:
    key: str
    title: str = ""
    category: str = ""
    price: float | None = None
    stock: int | None = None
    is_hidden: bool = False
    created: float = 0.0


@dataclass(frozen=True)
class Event:
    item: str
    kind: str = "purchase"
    value: float | None = None


def bought(*keys: str) -> list[Event]:
    return [Event(key) for key in keys]


def letters(count: int) -> list[str]:
    return [chr(ord("a") + place) for place in range(count)]


def shelf_of(count: int, **fields: Sequence[object]) -> Shelf:
    """Items a, b, c, ...; each field gives one value an item."""
    rows = [{name: values[place] for name, values in fields.items()} for place in range(count)]
    return Shelf.of(Item(key, **row) for key, row in zip(letters(count), rows, strict=True))  # type: ignore[arg-type]


def linear(
    weights: Sequence[Sequence[float]] | np.ndarray,
    popularity: Sequence[float] | None = None,
    *,
    served: Served = RAW,
    max_weights: int = 200,
) -> ItemItem:
    """A model of items a, b, c, ... whose base is a thousandth of the popularity."""
    square = np.asarray(weights, np.float32)
    counts = np.zeros(len(square)) if popularity is None else np.asarray(popularity, np.float64)
    neighbours = Neighbours.strongest([square], len(square), max_weights)
    return ItemItem(np.array(letters(len(square))), counts, (Term(1.0, counts / 1000, neighbours),), served)
