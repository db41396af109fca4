"""The shop's lists: candidates, scores, filters, boosts and pins, diversity, explanation; and what stands in where the
model knows nothing.

Everything is a function of the arguments and of what `Lists` holds; nothing is read or written. A list is filled in
this order: the model's items by what she had (``personal``, ``session``), items that the model does not know by their
titles and categories (``content``), then what most shoppers want (``popular``). A list says where it comes from; an
item that fills it up says its own source.

**Guarantee:** with a model of ``inside_shop = joint_dp`` a list is a function of that model, the public catalogue, the
query and the shopper's own history alone: no trends, no pairs of the shop's own.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from fedrec.shop.alignment import Alignment
from fedrec.shop.filling import ListSettings, as_listed, fill
from fedrec.shop.ranked import Query, RankedList, Source
from fedrec.shop.serving_model import InsideShop, ServingModel
from fedrec.shop.shelf import Shelf
from fedrec.shop.stages import ByContent, ByModel, ByValue, NewItems, Stage
from fedrec.shop.taste import HistoryEvent, Taste, taste_for, taste_of
from fedrec.shop.trends import Trends


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

    def _for_taste(self, taste: Taste, query: Query, source: Source) -> RankedList:
        stages: list[Stage] = []
        is_known = self.alignment.is_known[taste.items]
        if is_known.any():
            history, strengths = taste.items[is_known], taste.strengths[is_known]
            stages.append(ByModel(self.model, self.alignment, source, history, strengths))
        if len(taste.items):
            stages.append(ByContent(self.shelf, taste.items, taste.strengths))
        return self._filled([*stages, self._popularity()], taste, query)

    def _popularity(self) -> Stage:
        """The shop's own, or the model's where there is none or it must not be shown."""
        if self.trends is None:
            return ByValue(self.alignment.on_shelf(self.model.popularity, 0.0), Source.POPULAR)
        return ByValue(self.trends.popular(self.shelf.num_items), Source.POPULAR)

    def _filled(self, stages: Sequence[Stage], taste: Taste, query: Query) -> RankedList:
        is_allowed = self.shelf.mask(query.wanted).copy()
        is_allowed[self.shelf.positions(query.exclude)] = False
        is_allowed[taste.against] = False
        if not query.include_bought:
            is_allowed[taste.had] = False
        new = NewItems(self.shelf, self.alignment, taste.items, taste.strengths)
        places = fill(stages, new, query, shelf=self.shelf, is_allowed=is_allowed, settings=self.settings)
        settings = self.settings if query.explain else None
        items = as_listed(places[query.offset :], query.offset, self.shelf, settings)
        return RankedList(tuple(items), stages[0].source, self.model.served)
