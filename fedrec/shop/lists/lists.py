"""The shop's lists: candidates, scores, filters, boosts and pins, diversity, explanation; and what stands in where the
model knows nothing.

Everything is a function of the arguments and of what `Lists` holds; nothing is read or written. A list is filled in
this order: the model's items by what she had (``personal``, ``session``), items that the model does not know by their
titles and categories (``content``), then what most shoppers want (``popular``). A list says where it comes from; an
item that fills it up says its own source. Where the model's scores are not finite the list goes on without it, and says
so as its `RankedList.trouble`.

**Guarantee:** with a model of ``inside_shop = joint_dp`` a list is a function of that model, the public catalogue, the
query and the shopper's own history alone: no trends, no pairs of the shop's own.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cached_property

import numpy as np

from fedrec.errors import BrokenModel, DataError
from fedrec.shop.lists.alignment import Alignment
from fedrec.shop.lists.filling import ListSettings, as_listed, fill
from fedrec.shop.lists.ranked import Query, RankedList, Source
from fedrec.shop.lists.serving_model import InsideShop, ServingModel
from fedrec.shop.lists.shelf import NOT_HERE, Shelf
from fedrec.shop.lists.stages import NEVER, ByContent, ByModel, ByValue, NewItems, Stage
from fedrec.shop.lists.taste import NOBODY, HistoryEvent, Taste, taste_for, taste_of
from fedrec.shop.lists.trends import Trends


class Lists:
    """All lists of one shop at one moment: a shelf, a model, and the shop's trends; cheap to make again.

    Args:
        shelf: the catalogue.
        model: what is served.
        settings: how.
        trends: the shop's own; None = the model's popularity stands in. Never used under ``joint_dp``.
        alignment: of a shelf before this one with the same model, if there is one.
    """

    def __init__(
        self,
        shelf: Shelf,
        model: ServingModel,
        settings: ListSettings | None = None,
        trends: Trends | None = None,
        *,
        alignment: Alignment | None = None,
    ) -> None:
        self.shelf, self.model, self.settings = shelf, model, settings or ListSettings()
        self.trends = None if model.served.inside_shop is InsideShop.JOINT_DP else trends
        self.alignment = Alignment.of(shelf, model) if alignment is None else alignment.grown(shelf)

    def with_shelf(self, shelf: Shelf) -> Lists:
        """The same lists of a later shelf."""
        return Lists(shelf, self.model, self.settings, self.trends, alignment=self.alignment)

    def home(self, events: Iterable[HistoryEvent], query: Query) -> RankedList:
        """A known shopper's list; for one without any history what is popular.

        Args:
            events: hers, oldest first.
        """
        taste = taste_of(events, self.shelf, self.settings.taste).latest(self.settings.max_history)
        return self._for_taste(taste, query, Source.PERSONAL)

    def session(self, keys: Iterable[str], query: Query) -> RankedList:
        """A list for an anonymous visitor who looked at these items; they are not listed themselves."""
        taste = taste_for(keys, self.shelf).latest(self.settings.max_history)
        return self._for_taste(taste, query, Source.SESSION)

    def cart(self, keys: Iterable[str], query: Query, events: Iterable[HistoryEvent] = ()) -> RankedList:
        """What goes with a cart, by the model; its items are not listed.

        Args:
            events: of the shopper where she is known: what she had or disliked is left out, and says nothing more.
        """
        taste = taste_for(keys, self.shelf)
        hers = taste_of(events, self.shelf, self.settings.taste)
        taste = replace(taste, had=hers.had, against=hers.against)
        return self._for_taste(taste.latest(self.settings.max_history), query, Source.SESSION)

    def similar(self, key: str, query: Query) -> RankedList:
        """Items that the model links to one item, then those with words and categories like its own.

        Raises:
            DataError: the shop has no such item.
        """
        return self._around(key, query, [])

    def bought_together(self, key: str, query: Query) -> RankedList:
        """What shoppers of this item bought with it, then what is similar to it.

        Raises:
            DataError: the shop has no such item.
        """
        item = self._place(key)
        pairs, place = self.model.pairs, int(self.alignment.to_model[item])
        if pairs is None or place < 0:
            return self._around(key, query, [])
        together = pairs.sums(np.array([place]), np.ones(1))
        return self._around(key, query, [self._positive(together, Source.BOUGHT_TOGETHER)])

    def popular(self, query: Query) -> RankedList:
        """What most shoppers want."""
        return self._filled([self._popularity()], NOBODY, query, 0.0)

    def trending(self, query: Query) -> RankedList:
        """What most shoppers want lately, then what is popular; without trends that alone."""
        if self.trends is None:
            return self.popular(query)
        values = self.trends.trending(self.shelf.num_items)
        lately = ByValue(np.where(values > 0, values, NEVER), Source.TRENDING)
        return self._filled([lately, self._popularity()], NOBODY, query, 0.0)

    def newest(self, query: Query) -> RankedList:
        """What came last."""
        return self._filled([ByValue(self.shelf.created, Source.NEWEST)], NOBODY, query, 0.0)

    def _place(self, key: str) -> int:
        place = self.shelf.position(key)
        if place == NOT_HERE:
            raise DataError("there is no such item in the catalogue")
        return place

    def _around(self, key: str, query: Query, first: list[Stage]) -> RankedList:
        """The stages given, then items similar to one."""
        item = self._place(key)
        stages, one, trouble = first, np.array([item]), None
        if self.alignment.is_known[item]:
            place = self.alignment.to_model[one]
            try:
                lift = self.model.scores(place, np.ones(1)) - self._scores_of_nobody
                stages = [*stages, self._positive(lift, Source.SIMILAR)]
            except BrokenModel as error:
                trouble = str(error)
        stages = [*stages, ByContent(self.shelf, one, np.ones(1)), self._popularity()]
        return replace(self._filled(stages, replace(NOBODY, kept_out=one), query, 0.0), trouble=trouble)

    @cached_property
    def _scores_of_nobody(self) -> np.ndarray:
        return self.model.scores(np.empty(0, np.int64), np.empty(0))

    def _positive(self, values: np.ndarray, source: Source) -> Stage:
        """A stage of the model's items with values above 0."""
        return ByValue(self.alignment.on_shelf(np.where(values > 0, values, NEVER), NEVER), source)

    def _for_taste(self, taste: Taste, query: Query, source: Source) -> RankedList:
        stages: list[Stage] = []
        is_known = self.alignment.is_known[taste.items]
        if is_known.any():
            history, strengths = taste.items[is_known], taste.strengths[is_known]
            stages.append(ByModel(self.model, self.alignment, source, history, strengths))
        if len(taste.items):
            stages.append(ByContent(self.shelf, taste.items, taste.strengths))
        stages.append(self._popularity())
        try:
            return self._filled(stages, taste, query, self.settings.new_share)
        except BrokenModel as error:
            others = [stage for stage in stages if not isinstance(stage, ByModel)]
            return replace(self._filled(others, taste, query, self.settings.new_share), trouble=str(error))

    def _popularity(self) -> Stage:
        """The shop's own, or the model's where there is none or it must not be shown."""
        if self.trends is None:
            return ByValue(self.alignment.on_shelf(self.model.popularity, 0.0), Source.POPULAR)
        return ByValue(self.trends.popular(self.shelf.num_items), Source.POPULAR)

    def _likeness(self, items: np.ndarray) -> np.ndarray:
        """By words and categories; where an item has none, by the model."""
        found = self.shelf.words.between(items, items)
        is_bare = found.diagonal() == 0
        if not is_bare.any():
            return found
        places, is_known = self.alignment.of_shelf(items)
        linked = np.zeros_like(found)
        linked[np.ix_(is_known, is_known)] = self.model.likeness(places)
        return np.where(is_bare[:, None] | is_bare[None, :], linked, found)

    def _filled(self, stages: Sequence[Stage], taste: Taste, query: Query, new_share: float) -> RankedList:
        is_allowed = self.shelf.mask(query.wanted).copy()
        if query.exclude:
            is_allowed[self.shelf.positions(query.exclude)] = False
        is_allowed[taste.against] = False
        is_allowed[taste.kept_out] = False
        if not query.include_bought:
            is_allowed[taste.had] = False
        new = NewItems(self.shelf, self.alignment, taste.items, taste.strengths)
        places = fill(stages, new, new_share, query, shelf=self.shelf, is_allowed=is_allowed, likeness=self._likeness)
        limit = self.settings.max_contributions if query.explain else 0
        items = as_listed(places[query.offset :], query.offset, self.shelf, limit)
        sources = {place.source for place in places}
        reason = next((stage.source for stage in stages if stage.source in sources), stages[-1].source)
        return RankedList(tuple(items), reason, self.model.served)
