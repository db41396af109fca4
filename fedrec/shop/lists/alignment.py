"""Where the shelf's items are in a model's item space: the shelf grows, a model stays as it was trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from fedrec.shop.lists.serving_model import ServingModel
from fedrec.shop.lists.shelf import NOT_HERE, Shelf

_NEWEST = 2000


@dataclass(frozen=True, repr=False)
class Alignment:
    """A shelf beside a model.

    Attributes:
        places: position in the model by key.
        to_model: int64, (num_items of the shelf,); -1 = the model does not know it.
        to_shelf: int64, (num_items of the model,); -1 = no longer on the shelf.
        created: float64, (num_items of the shelf,).
    """

    places: Mapping[str, int]
    to_model: np.ndarray
    to_shelf: np.ndarray
    created: np.ndarray

    @classmethod
    def of(cls, shelf: Shelf, model: ServingModel) -> Alignment:
        """Look every key up."""
        places = {key: place for place, key in enumerate(model.items.tolist())}
        empty = cls(places, np.empty(0, np.int64), np.full(len(model.items), NOT_HERE, np.int64), np.empty(0))
        return empty.grown(shelf)

    def grown(self, shelf: Shelf) -> Alignment:
        """The same for a later shelf; only its new items are looked up."""
        old = len(self.to_model)
        new = [self.places.get(key, NOT_HERE) for key in shelf.keys[old : shelf.num_items]]
        to_model = np.concatenate([self.to_model, np.array(new, np.int64)])
        is_known = to_model != NOT_HERE
        to_shelf = self.to_shelf.copy()
        to_shelf[to_model[is_known]] = np.flatnonzero(is_known)
        return Alignment(self.places, to_model, to_shelf, shelf.created)

    @cached_property
    def _is_same(self) -> bool:
        return np.array_equal(self.to_model, np.arange(len(self.to_shelf)))

    @cached_property
    def is_known(self) -> np.ndarray:
        """bool, (num_items of the shelf,): the model knows the item."""
        return self.to_model != NOT_HERE

    @cached_property
    def newest_unknown(self) -> np.ndarray:
        """int64: the last 2,000 items that the model does not know, newest first."""
        unknown = np.flatnonzero(~self.is_known)
        return unknown[np.argsort(-self.created[unknown], kind="stable")[:_NEWEST]]

    @cached_property
    def place_among_new(self) -> dict[int, int]:
        """Places in `newest_unknown`."""
        return {item: place for place, item in enumerate(self.newest_unknown.tolist())}

    def on_shelf(self, values: np.ndarray, missing: float) -> np.ndarray:
        """float64, (num_items of the shelf,): the model's values, ``missing`` where it does not know the item."""
        if self._is_same:
            return values
        return np.append(values, missing)[self.to_model]  # -1 takes the last

    def of_shelf(self, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Those of some shelf positions that the model knows: their places in the model, and bool which they are."""
        found = self.to_model[places]
        is_known = found != NOT_HERE
        return found[is_known], is_known
