"""What a list is filled from, one after the other: each stage scores the whole shelf and can say why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from fedrec.shop.lists.alignment import Alignment
from fedrec.shop.lists.ranked import Source
from fedrec.shop.lists.serving_model import Attribution, Parts, ServingModel
from fedrec.shop.lists.shelf import Shelf

NEVER = -np.inf
"""Score of what a stage does not list."""

_AGE = 1e-9


class Stage(Protocol):
    """One way to score; positions are the shelf's."""

    @property
    def source(self) -> Source:
        """What a list says that begins with this stage."""
        ...

    @property
    def history(self) -> np.ndarray:
        """int64: what contributions are of."""
        ...

    @property
    def candidates(self) -> np.ndarray | None:
        """int64, rising or not, distinct: the items that ``scores`` are of; None = the whole shelf."""
        ...

    def scores(self) -> np.ndarray:
        """float64, one for each candidate; `NEVER` where the stage has nothing to say. A new array."""
        ...

    def sources(self, places: np.ndarray) -> list[Source]:
        """Of single items."""
        ...

    def parts(self, places: np.ndarray) -> Parts:
        """The scores of some items, taken apart."""
        ...


@dataclass(frozen=True, repr=False)
class ByModel:
    """By what she had, through the model; what nothing in her history speaks for has its popularity alone.

    Attributes:
        source: personal or session.
        history: int64; known to the model, not empty.
        strengths: float64, (len(history),).
    """

    model: ServingModel
    alignment: Alignment
    source: Source
    history: np.ndarray
    strengths: np.ndarray
    candidates: None = None

    def scores(self) -> np.ndarray:
        """Of the model."""
        history = self.alignment.to_model[self.history]
        return self.alignment.on_shelf(self.model.scores(history, self.strengths), NEVER)

    def sources(self, places: np.ndarray) -> list[Source]:
        """Popular where nothing in her history speaks for the item."""
        to_model = self.alignment.to_model
        is_reached = self.model.reach(to_model[self.history], to_model[places])
        return [self.source if reached else Source.POPULAR for reached in is_reached.tolist()]

    def parts(self, places: np.ndarray) -> Parts:
        """Of the model."""
        to_model = self.alignment.to_model
        return self.model.parts(to_model[self.history], self.strengths, to_model[places])


@dataclass(frozen=True, repr=False)
class ByContent:
    """By titles and categories like those of her history: sum of cosines, by strength."""

    shelf: Shelf
    history: np.ndarray
    strengths: np.ndarray
    source: Source = Source.CONTENT
    candidates: None = None

    def scores(self) -> np.ndarray:
        """Only items that have anything in common with her history."""
        scores = self.of(None)
        scores[scores <= 0] = NEVER
        return scores

    def of(self, places: np.ndarray | None) -> np.ndarray:
        """float64: of some items, or all."""
        words = self.shelf.words
        return words.similarities(words.profile(self.history, self.strengths), places)

    def sources(self, places: np.ndarray) -> list[Source]:
        """All the same."""
        return [self.source] * len(places)

    def parts(self, places: np.ndarray) -> Parts:
        """Exact: the cosines."""
        cosines = self.shelf.words.between(places, self.history)
        return Parts(np.zeros(len(places)), cosines * self.strengths, Attribution.EXACT)


@dataclass(frozen=True, repr=False)
class ByValue:
    """The same for everybody: popularity, trends, age, what goes with an item.

    Attributes:
        values: float64, (num_items,); `NEVER` = not listed.
    """

    values: np.ndarray
    source: Source
    candidates: None = None

    @property
    def history(self) -> np.ndarray:
        """Nobody's."""
        return np.empty(0, np.int64)

    def scores(self) -> np.ndarray:
        """The values."""
        return self.values.copy()

    def sources(self, places: np.ndarray) -> list[Source]:
        """All the same."""
        return [self.source] * len(places)

    def parts(self, places: np.ndarray) -> Parts:
        """All base."""
        return Parts(self.values[places], np.zeros((len(places), 0)), Attribution.EXACT)


@dataclass(frozen=True, repr=False)
class NewItems:
    """Items that the model does not know, for reserved places: those like her history first, then the newest."""

    shelf: Shelf
    alignment: Alignment
    history: np.ndarray
    strengths: np.ndarray
    source: Source = Source.NEW

    @property
    def candidates(self) -> np.ndarray:
        """The newest."""
        return self.alignment.newest_unknown

    def scores(self) -> np.ndarray:
        """Similarity less `_AGE` for each newer item: age orders what is alike."""
        scores = -_AGE * np.arange(len(self.candidates), dtype=np.float64)
        if len(self.history) and len(scores):
            scores += ByContent(self.shelf, self.history, self.strengths).of(self.candidates)
        return scores

    def sources(self, places: np.ndarray) -> list[Source]:
        """All the same."""
        return [self.source] * len(places)

    def parts(self, places: np.ndarray) -> Parts:
        """Exact: the cosines, and age as the base."""
        parts = ByContent(self.shelf, self.history, self.strengths).parts(places)
        age = [self.alignment.place_among_new[place] for place in places.tolist()]
        return Parts(-_AGE * np.array(age, np.float64), parts.contributions, parts.attribution)
