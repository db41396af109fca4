"""One shop being served: its store, its catalogue, the model of the moment, and the lists that nobody's event changed.

All of it lives on the server's event loop but for opening models, writing and counting, which threads do; what they
make is put in place between two requests. SQLite is read on the loop too, in microseconds; for PostgreSQL, which may
keep a reader waiting, a thread waits. Other processes' events, items and erasures are seen by the store's mark,
which is read before every answer; other processes' models by the file that says which is current.

**Guarantee:** a list is computed from what the store held when it was asked for. One that is answered again without
computing is dropped by the shopper's next event, by any change of an item, by an erasure and by a new model.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from starlette.concurrency import run_in_threadpool

from fedrec.errors import ConfigError, FedrecError, StoreError
from fedrec.shop.adoption import LOCAL, roll_back, versions
from fedrec.shop.api.arms import CURRENT_ARM, OTHER_ARM, Opened, OpenModel, arm_of, files_of, open_models
from fedrec.shop.api.counting import Counting
from fedrec.shop.api.encoding import Encoding
from fedrec.shop.api.forgetting import what_is_left
from fedrec.shop.api.kept_lists import KeptList, KeptLists, ListName, kept_list
from fedrec.shop.api.metrics import ShopMetrics
from fedrec.shop.api.news import News, Seen, read_news, waiting
from fedrec.shop.api.outside import Outside
from fedrec.shop.api.problems import ApiError
from fedrec.shop.api.reading import read_query
from fedrec.shop.api.stored_counts import StoredCounts
from fedrec.shop.lists.lists import Lists
from fedrec.shop.lists.ranked import Query, RankedList
from fedrec.shop.lists.serving_model import InsideShop
from fedrec.shop.lists.serving_settings import ServingSettings
from fedrec.shop.lists.shelf import NOT_HERE, Shelf
from fedrec.shop.lists.trends import Trends
from fedrec.shop.member import MODELS_FOLDER
from fedrec.shop.status import STATUS_FILE, read_status
from fedrec.shop.store.rows import Item, ItemChange, Said, StoredEvent, check_id
from fedrec.shop.store.store import ALL_EVENTS, ImpressionRow, Store

_log = logging.getLogger("fedrec.shop.api")
_WATCH_S = 0.5
_MOST_IMPRESSIONS = 100_000
_COUNT_PAUSE = 10.0
"""Times as long as counting took nothing is counted anew for items that came after their events."""
_NEW_SHOP = "there is no model of the shop's events yet; fedrec shop refresh makes one"


class LiveShop:
    """A shop of this process."""

    def __init__(
        self,
        name: str,
        folder: Path,
        store: Store,
        settings: ServingSettings,
        *,
        open_model: OpenModel,
        outside: Callable[[], float | None] | None = None,
        split_key: bytes = b"",
        encoding: Encoding | None = None,
        trains_on_store: bool = True,
    ) -> None:
        """Open the catalogue and the model.

        Args:
            name: of the shop.
            folder: the shop's.
            store: the shop's; closed with the shop.
            settings: from the shop's file.
            open_model: reads a model.
            outside: see `Outside`.
            split_key: secret of at most 64 bytes, the same at every start; needed for a split.
            encoding: of item texts; None = items are as alike as their words. Closed with the shop.
            trains_on_store: see `what_is_left`.
        Raises:
            StoreError: the store cannot be read, or no model can be served.
        """
        self.name, self.settings, self.store, self.metrics = name, settings, store, ShopMetrics()
        self.folder, self._models = folder, folder / MODELS_FOLDER
        self._open_model, self._split_key, self._encoding = open_model, split_key, encoding
        self._trains_on_store = trains_on_store
        self._kept, self._stored = KeptLists(), StoredCounts(store, settings.lists.taste.good_rating)
        self._impressions: list[ImpressionRow] = []
        self._counting = Counting(store, settings.lists.taste, settings.trends)
        self._trends: Trends | None = None
        self._counted: Future[Trends] | None = None
        self._uncounted: list[StoredEvent] = []
        self._broken: set[str] = set()
        self._count_began = self._count_again_at = 0.0
        self._generation, self._num_taken, self._is_stuck = store.generation(), 0, False
        self._seen = Seen(None, store.last_sequence(), 0, is_behind=False)
        self._shelf = Shelf() if encoding is None else encoding.shelf()
        self._tasks: list[asyncio.Task[None]] = []
        self._files, self._outside = files_of(self._models, settings.split), Outside(name, folder, outside)
        while changes := store.items_after(self._seen.items):
            self._take_items(changes)
        if encoding is not None:
            self._shelf = encoding.recall(self._shelf)
        self._opened = self._open(None)
        self._stock(self._opened)
        self._arms = self._lists_of(self._opened)

    @property
    def trouble(self) -> str | None:
        """Why another model is served than should be; None = it is not."""
        return self._opened.trouble

    @property
    def store_trouble(self) -> str | None:
        """Why what was shown last could not be written, so that events are not taken either; None = it could."""
        return "the store cannot be written: events are refused" if self._is_stuck else None

    @property
    def model_trouble(self) -> str | None:
        """That no event taught the served model anything, where its shop's own events should; None = some did."""
        served = self._arms[CURRENT_ARM].model
        is_own = served.served.version == LOCAL and served.served.inside_shop is InsideShop.NONE
        return _NEW_SHOP if is_own and not served.popularity.any() else None

    def stale(self) -> set[str]:
        """Served versions that were made with raw events of somebody who was erased since; in a thread."""
        generation = self.store.generation()
        served = (lists.model.served for lists in self._arms.values())
        return {one.version for one in served if one.is_stale(generation)}

    @property
    def troubles(self) -> list[str]:
        """All that is not as it should be, the worst first."""
        of_texts = None if self._encoding is None else self._encoding.trouble
        found = (self.store_trouble, self.trouble, self.model_trouble, *sorted(self._broken), of_texts)
        return [one for one in found if one is not None]

    @property
    def current(self) -> str:
        """The version that should be served, as far as it was looked for."""
        return self._opened.current

    async def lists_for(self, shopper: str | None) -> Lists:
        """What a shopper's lists are made from now, to look at; None = by the current model. Notes nothing as shown."""
        self._take(await waiting(self.store, read_news, self.store, self._seen))
        return self._arms[CURRENT_ARM if shopper is None else self._arm_of(shopper)]

    def start(self) -> None:
        """Begin to watch for models, to write impressions, to count and to encode; on the event loop."""
        self._count()
        tasks = (self._watch, self._write_impressions, self._encode)
        self._tasks = [asyncio.create_task(self._repeat(what)) for what in tasks]

    async def close(self) -> None:
        """Write what is left and close the store."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        with suppress(StoreError):
            await self._write_impressions()
        self._counting.close()
        if self._encoding is not None:
            self._encoding.close()
        self.store.close()

    def unchanged(self, name: ListName, subject: str, query: bytes) -> bytes | None:
        """A list as it was answered before; None = it must be computed.

        Args:
            subject: a shopper, an item, or "".
            query: as it was sent.
        Raises:
            StoreError: nobody can say whether it is unchanged.
        """
        self._catch_up()
        return self._unchanged(name, subject, query)

    def _unchanged(self, name: ListName, subject: str, query: bytes) -> bytes | None:
        found = None if self._seen.is_behind else self._kept.get(name, subject, query)
        if found is None:
            return None
        return self._shown(found, subject if name is ListName.HOME else None, is_unchanged=True)

    async def answer(self, name: ListName, subject: str, query: bytes) -> bytes:
        """`unchanged`, or else `listed`; where the store is no file of this machine, a thread waits for it."""
        if self.store.is_file:
            return self.unchanged(name, subject, query) or self.listed(name, subject, read_query(query), query)
        is_wanted = self._seen.is_behind or self._kept.get(name, subject, query) is None
        taken = self._num_taken
        news, said = await run_in_threadpool(self._read, subject if is_wanted and name is ListName.HOME else None)
        is_newest = self._num_taken == taken  # else another answer may have seen an event that came after these
        self._take(news)
        if (found := self._unchanged(name, subject, query)) is not None:
            return found
        if said is None and name is ListName.HOME:
            return await self.answer(name, subject, query)
        return self.listed(name, subject, read_query(query), query, said=said, is_newest=is_newest)

    def listed(
        self,
        name: ListName,
        subject: str,
        asked: Query,
        query: bytes,
        *,
        said: Sequence[Said] | None = None,
        is_newest: bool = True,
    ) -> bytes:
        """A list of a shopper, an item or nobody, as JSON; after `unchanged` found none.

        Args:
            said: by the shopper's events; None = they are read here.
            is_newest: nothing was seen since they were read, so that the list may be kept.
        Raises:
            ApiError: 404, an unknown item.
            StoreError: her events cannot be read.
        """
        if name is ListName.HOME and subject:
            check_id("shopper", subject)
        arm = self._arm_of(subject) if name is ListName.HOME else CURRENT_ARM
        lists = self._arms[arm]
        if name in (ListName.SIMILAR, ListName.TOGETHER) and lists.shelf.position(subject) == NOT_HERE:
            raise ApiError(404, "there is no such item")
        if name is ListName.HOME:
            ranked = lists.home(self.store.said(subject) if said is None else said, asked)
        elif name is ListName.SIMILAR:
            ranked = lists.similar(subject, asked)
        elif name is ListName.TOGETHER:
            ranked = lists.bought_together(subject, asked)
        else:
            of_all = {ListName.POPULAR: lists.popular, ListName.TRENDING: lists.trending, ListName.NEW: lists.newest}
            ranked = of_all[name](asked)
        kept = self._kept_list(name, ranked, arm)
        if is_newest:
            self._kept.put(subject, query, kept)
        return self._shown(kept, subject if name is ListName.HOME else None)

    def listed_for(self, name: ListName, items: Iterable[str], shopper: str | None, asked: Query) -> bytes:
        """A list for a session or a cart, as JSON.

        Args:
            shopper: whose cart; None = unknown.
        """
        self._catch_up()
        return self._listed_for(name, items, shopper, asked, () if shopper is None else self.store.said(shopper))

    async def answer_for(self, name: ListName, items: Iterable[str], shopper: str | None, asked: Query) -> bytes:
        """`listed_for`; where the store is no file of this machine, a thread waits for it."""
        if self.store.is_file:
            return self.listed_for(name, items, shopper, asked)
        news, said = await run_in_threadpool(self._read, shopper)
        self._take(news)
        return self._listed_for(name, items, shopper, asked, said or ())

    def _listed_for(
        self, name: ListName, items: Iterable[str], shopper: str | None, asked: Query, said: Sequence[Said]
    ) -> bytes:
        arm = CURRENT_ARM if shopper is None else self._arm_of(shopper)
        lists = self._arms[arm]
        ranked = lists.session(items, asked) if name is ListName.SESSION else lists.cart(items, asked, events=said)
        return self._shown(self._kept_list(name, ranked, arm), shopper)

    def _kept_list(self, name: ListName, ranked: RankedList, arm: str) -> KeptList:
        """A list of now as an answer; what is wrong with its model is told in `troubles`, and logged once."""
        if ranked.trouble is not None and ranked.trouble not in self._broken:
            self._broken.add(ranked.trouble)
            _log.error("shop %s: %s", self.name, ranked.trouble)
        return kept_list(name, ranked, arm, self._shelf)

    def export(self, shopper: str) -> dict[str, Any] | None:
        """All that the shop holds of a shopper, None = nothing; in a thread."""
        found = self.store.export_shopper(shopper)
        return found if any(found[name] for name in ("events", "impressions", "erased_at")) else None

    def erase(self, shopper: str) -> dict[str, Any]:
        """Forget a shopper; in a thread.

        Returns:
            What was erased, and what past releases may still tell.
        """
        events, trends = self.store.history(shopper, limit=ALL_EVENTS), self._trends
        erased = self.store.erase_shopper(shopper)
        if trends is not None:  # all is counted anew, too, but that takes a while; these counts are of before
            self._counting.take_back(trends, events, self._shelf)
        generation, of_store = self.store.generation(), self._trains_on_store
        return what_is_left(
            self.folder, self.name, erased, self.stale(), generation=generation, trains_on_store=of_store
        )

    def models(self, current: str | None = None) -> dict[str, Any]:
        """As `fedrec.shop.api.schemas.ModelsOut`; in a thread.

        Args:
            current: what should be served, if that is newer than what was looked for last.
        """
        current = current or self._opened.current
        served = self._arms[CURRENT_ARM].model.served.version
        split = self.settings.split
        found = versions(self._models)
        return {
            "served": served,
            "current": current,
            "trouble": self.trouble,
            "is_stale": bool(self.stale()),
            "versions": [{"version": one, "is_current": one == current, "is_served": one == served} for one in found],
            "split": {} if split is None else {current: 1 - split.share, split.version: split.share},
        }

    def roll_back(self, version: str | None) -> dict[str, Any]:
        """Serve another version from now on; in a thread. The watcher opens it."""
        try:
            return self.models(roll_back(self._models, version))
        except ConfigError as error:
            raise ApiError(409, str(error)) from error

    def privacy(self) -> dict[str, Any]:
        """As `fedrec.shop.api.schemas.PrivacyOut`; in a thread."""
        served = self._arms[CURRENT_ARM].model.served
        return {
            "mode": served.mode,
            "epsilon_outside": served.epsilon_outside,
            "inside_shop": served.inside_shop,
            "ledger": _ledger(self.folder),
        }

    def click_through(self) -> list[dict[str, Any]]:
        """As `fedrec.shop.api.schemas.ArmOut`; in a thread."""
        return [
            {**row._asdict(), "day": datetime.fromtimestamp(row.day * 86_400, UTC).date().isoformat()}
            for row in self.store.click_through(good_rating=self.settings.lists.taste.good_rating)
        ]

    def metrics_text(self) -> bytes:
        """For Prometheus; in a thread."""
        stored = self._stored.newest()
        figures = {
            "items": float(self._shelf.num_items),
            "events": float(stored.num_events),
            "counts_age_seconds": time.monotonic() - stored.made,
            "impressions_waiting": float(len(self._impressions)),
            "model_is_stale": float(bool(self.stale())),
            **({} if self._encoding is None else {"texts_waiting": float(self._encoding.num_waiting(self._shelf))}),
            **{f"ledger_{name}": value for name, value in _ledger(self.folder).items()},
        }
        served = self._arms[CURRENT_ARM].model.served.version
        return self.metrics.text(figures, stored.shown, version=served, is_well=self.trouble is None)

    def _shown(self, kept: KeptList, shopper: str | None, *, is_unchanged: bool = False) -> bytes:
        """A list's JSON with an id of its own, which is noted."""
        list_id = secrets.token_hex(8)
        arm = kept.arm if self.settings.split and shopper else ""  # who is unknown is in no comparison
        if len(self._impressions) < _MOST_IMPRESSIONS:
            self._impressions.append((list_id, shopper or None, kept.name, kept.version, arm, time.time(), kept.items))
        self.metrics.listed(kept.name, kept.reason, kept.version, arm, is_unchanged=is_unchanged)
        return b'{"list_id":"' + list_id.encode() + b'"' + kept.body

    def _arm_of(self, shopper: str) -> str:
        if self.settings.split is None or OTHER_ARM not in self._arms:
            return CURRENT_ARM
        return arm_of(shopper, self.settings.split, self._split_key)

    def _catch_up(self) -> None:
        """See what was written since the last answer."""
        self._take(read_news(self.store, self._seen))

    def _read(self, shopper: str | None) -> tuple[News | None, list[Said] | None]:
        """What is new, and then what her events say; in a thread."""
        news = read_news(self.store, self._seen)
        return news, None if shopper is None else self.store.said(shopper)

    def _take(self, news: News | None) -> None:
        """Take in what was read, but what was taken in meanwhile."""
        if news is None:
            return
        self._num_taken += 1
        events = [one for one in news.events if one.sequence > self._seen.events]
        last = events[-1].sequence if events else self._seen.events
        self._seen = replace(self._seen, mark=news.mark, events=last, is_behind=news.is_page)
        if events:
            for shopper in {one.shopper for one in events}:
                self._kept.drop(ListName.HOME, shopper)
            if self._counted is not None:  # they came after what is being counted
                self._uncounted += events
            elif self._trends is not None:
                self._counting.add(self._trends, events, self._shelf)
        if news.items:
            for page in news.items:
                self._take_items([one for one in page if one.sequence > self._seen.items])
            self._put_on_shelf(self._arms)
        if news.generation > self._generation:
            self._generation = news.generation
            self._kept.clear()
            self._count()

    def _count(self) -> None:
        """Begin to count anew all that was seen so far."""
        self._count_began = time.monotonic()
        self._counted, self._uncounted = self._counting.begin(self._shelf, self._seen.events), []

    def _take_items(self, changes: Sequence[ItemChange]) -> None:
        if changes:
            self._seen = replace(self._seen, items=changes[-1].sequence)
            self._shelf = self._shelf.with_items(one.item for one in changes)
            self._shelf = self._shelf.with_hidden(one.item.key for one in changes if one.is_deleted)

    def _open(self, before: Opened | None) -> Opened:
        catalogue = [
            key for key, hidden in zip(self._shelf.keys, self._shelf.is_hidden.tolist(), strict=False) if not hidden
        ]
        return open_models(self._models, self.settings.split, before, catalogue=catalogue, open_model=self._open_model)

    def _stock(self, opened: Opened) -> None:
        """Put items on the shelf that a model knows from events and the store says nothing of."""
        for model in opened.models.values():
            unknown = [Item(key) for key in model.items.tolist() if key not in self._shelf.place]
            self._shelf = self._shelf.with_items(unknown) if unknown else self._shelf

    def _lists_of(self, opened: Opened) -> dict[str, Lists]:
        found = {
            arm: Lists(self._shelf, self._outside.told(model), self.settings.lists, self._trends)
            for arm, model in opened.models.items()
        }
        for lists in found.values():  # warm before anybody asks
            lists.popular(Query(explain=True))
        return found

    async def _watch(self) -> None:
        """Put in place what threads have made: another model, or counts."""
        if self._counted is not None and self._counted.done():
            if self._counted.exception() is not None:
                self._count()
                return
            self._take(await run_in_threadpool(read_news, self.store, self._seen))
            if not self._counted.done():  # who is counted was erased meanwhile: it was begun anew
                return
            self._trends, self._counted = self._counted.result(), None
            self._count_again_at = time.monotonic() + _COUNT_PAUSE * (time.monotonic() - self._count_began)
            self._counting.add(self._trends, self._uncounted, self._shelf)
            self._put(self._opened, await run_in_threadpool(self._lists_of, self._opened))
        elif self._counted is None and time.monotonic() >= self._count_again_at and self._counting.lacks(self._shelf):
            self._count()
        if self._outside.may_differ() and await run_in_threadpool(self._outside.ask):
            self._put(self._opened, await run_in_threadpool(self._lists_of, self._opened))
        files = files_of(self._models, self.settings.split)
        if files != self._files:
            opened = await run_in_threadpool(self._open, self._opened)
            self._put(opened, await run_in_threadpool(self._lists_of, opened))
            self._files, self._broken = files, set()

    def _put(self, opened: Opened, arms: dict[str, Lists]) -> None:
        self._stock(opened)
        self._opened = opened
        self._put_on_shelf(arms)

    def _put_on_shelf(self, arms: dict[str, Lists]) -> None:
        """Serve these, from the shelf of now."""
        self._arms = {arm: lists.with_shelf(self._shelf) for arm, lists in arms.items()}
        self._kept.clear()

    async def _encode(self) -> None:
        if self._encoding is not None and (shelf := self._encoding.advance(self._shelf)) is not self._shelf:
            self._shelf = shelf
            self._put_on_shelf(self._arms)

    async def _write_impressions(self) -> None:
        if self._impressions:
            rows, self._impressions = self._impressions, []
            try:
                await run_in_threadpool(self.store.add_impression_rows, rows)
            except StoreError:
                self._impressions = [*rows, *self._impressions][:_MOST_IMPRESSIONS]
                self._is_stuck = True
                raise
            self._is_stuck = False

    async def _repeat(self, what: Callable[[], Any]) -> None:
        while True:
            await asyncio.sleep(_WATCH_S)
            try:
                await what()
            except FedrecError as error:
                _log.warning("shop %s: %s", self.name, error)
            except Exception as error:  # the next turn may do better; what it was about may name a shopper
                _log.error("shop %s: unexpected %s in %s", self.name, type(error).__name__, what.__name__)


def _ledger(folder: Path) -> dict[str, float]:
    """What the agent said last about the shop's budget; empty where there is none."""
    return dict(read_status(folder)["ledger"]) if (folder / STATUS_FILE).exists() else {}
