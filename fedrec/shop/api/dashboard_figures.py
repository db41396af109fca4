"""What the dashboard shows of a shop, read from its store, its models and its ledger."""

from __future__ import annotations

import asyncio
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from fedrec.privacy import ledger_rules
from fedrec.reports.privacy_entries import counted, read_source
from fedrec.reports.privacy_figures import history, left
from fedrec.shop.adoption import Adoption, adoptions
from fedrec.shop.api.dashboard_plots import Line
from fedrec.shop.api.live_shop import LiveShop
from fedrec.shop.api.news import waiting
from fedrec.shop.lists.lists import Lists
from fedrec.shop.lists.ranked import Query, RankedList
from fedrec.shop.lists.shelf import NOT_HERE
from fedrec.shop.member import LEDGER_FILE, MODELS_FOLDER
from fedrec.shop.store.rows import ClickThrough, StoredEvent

DAYS = 60
"""Click-through is shown of so many days."""

LIST_LENGTH = 10
_DAY_S = 86_400.0
_COVERAGE_S = 60.0
_MOST_SHOPPERS = 100
_MOST_EVENTS = 2_000
_MOST_HISTORY = 12
_MOST_REASONS = 3


@dataclass(frozen=True)
class Coverage:
    """How much of the catalogue can be found.

    Attributes:
        items: that may be listed: not hidden, not deleted.
        known: of these, the model knows.
        listed: of these, in the lists of the last shoppers.
        shoppers: how many were asked for that; 0 = nobody did anything yet.
        hidden: items that are hidden or deleted.
    """

    items: int
    known: int
    listed: int
    shoppers: int
    hidden: int


@dataclass(frozen=True)
class Rate:
    """Lists shown and clicked, with what chance allows.

    Attributes:
        name: of a list, or of an arm.
        low, high: 95 % interval of the share (Wilson).
    """

    name: str
    shown: int
    clicked: int

    @property
    def share(self) -> float:
        return self.clicked / self.shown

    @property
    def low(self) -> float:
        return self._wilson(-1)

    @property
    def high(self) -> float:
        return self._wilson(1)

    def _wilson(self, sign: int) -> float:
        z, n = 1.959964, self.shown
        half = z * math.sqrt(self.share * (1 - self.share) / n + z * z / (4 * n * n))
        return max(0.0, (self.share + z * z / (2 * n) + sign * half) / (1 + z * z / n))


@dataclass(frozen=True)
class Clicks:
    """Click-through of the last `DAYS` days.

    Attributes:
        by_list, by_arm: totals; arms only while two models are compared.
        lines: share by day, of all lists or of each arm.
        shown: (seconds since 1970, lists, words) by day.
    """

    by_list: list[Rate]
    by_arm: list[Rate]
    lines: list[Line]
    shown: list[tuple[float, float, str]]

    @property
    def most(self) -> float:
        """The greatest share that an arm may have."""
        return max(one.high for one in self.by_arm)


@dataclass(frozen=True)
class Budget:
    """The shop's privacy ledger.

    Attributes:
        epsilon, delta: what the shop is willing to spend on each shopper.
        is_yearly: again each year.
        spent, committed, lifetime: epsilon charged in the period, with what is reserved, and ever.
        left: epsilon of the largest run that still fits.
        releases: sums that left.
        line: spent over time.
    """

    epsilon: float
    delta: float
    is_yearly: bool
    spent: float
    committed: float
    lifetime: float
    left: float
    releases: int
    line: Line


class Figures:
    """Reads figures; keeps those that are slow for a while."""

    def __init__(self) -> None:
        self._coverage: dict[str, tuple[float, str, Coverage]] = {}
        self._budgets: dict[str, tuple[object, Budget]] = {}

    async def coverage(self, shop: LiveShop) -> Coverage:
        """On the event loop, a list at a time, so that nobody waits for it."""
        lists = await shop.lists_for(None)
        made, version, found = self._coverage.get(shop.name, (-math.inf, "", Coverage(0, 0, 0, 0, 0)))
        if version == lists.model.served.version and time.monotonic() - made < _COVERAGE_S:
            return found
        shoppers = await waiting(shop.store, last_shoppers, shop)
        listed: set[str] = set()
        for one in shoppers:
            listed.update((await _home(shop, one, explain=False))[1].keys)
            await asyncio.sleep(0)
        is_shown = ~lists.shelf.is_hidden
        found = Coverage(
            int(is_shown.sum()),
            int((is_shown & lists.alignment.is_known).sum()),
            len(listed),
            len(shoppers),
            int((~is_shown).sum()),
        )
        self._coverage[shop.name] = time.monotonic(), lists.model.served.version, found
        return found

    def budget(self, shop: LiveShop) -> Budget | None:
        """In a thread; None = the shop never took part in a private run.

        Raises:
            StoreError, LedgerTampered: it cannot be read, or not be trusted.
        """
        path = shop.folder / LEDGER_FILE
        files = [file for file in (path, path.with_name(f"{LEDGER_FILE}-wal")) if file.exists()]
        if path not in files:
            return None
        stamp = [(file.stat().st_mtime_ns, file.stat().st_size) for file in files]
        before = self._budgets.get(shop.name)
        if before is None or before[0] != stamp:
            before = self._budgets[shop.name] = stamp, _read_budget(str(path), shop.name)
        return before[1]


def last_shoppers(shop: LiveShop) -> list[str]:
    """At most `_MOST_SHOPPERS` who did something lately, the last one first."""
    newest = shop.store.events_after(max(0, shop.store.last_sequence() - _MOST_EVENTS), _MOST_EVENTS)
    return list(dict.fromkeys(one.shopper for one in reversed(newest)))[:_MOST_SHOPPERS]


def clicks(shop: LiveShop) -> Clicks:
    """In a thread."""
    rows = shop.store.click_through(time.time() - DAYS * _DAY_S, good_rating=shop.settings.lists.taste.good_rating)
    arms = _summed((row for row in rows if row.arm), lambda row: f"{row.arm}: {row.version}")
    by_name = arms or {"all lists": rows}
    lines = [Line(name, _by_day(found)) for name, found in sorted(by_name.items())] if rows else []
    shown = [(day * _DAY_S, float(count), f"{_day(day)}: {count:,} lists") for day, count in _per_day(rows).items()]
    return Clicks(
        sorted((_rate(name, found) for name, found in _summed(rows, lambda row: row.list_name).items()), key=_most),
        [_rate(name, found) for name, found in sorted(arms.items())],
        lines,
        shown,
    )


def judged(shop: LiveShop) -> dict[str, Adoption]:
    """What became of each model, by version; in a thread."""
    return {one.run_id: one for one in adoptions(shop.folder / MODELS_FOLDER)}


@dataclass(frozen=True)
class Reason:
    """An item of her history, and its share of all that speaks for the listed one."""

    title: str
    share: float


@dataclass(frozen=True)
class Shown:
    """One line of a shopper's list, as somebody of the shop sees it."""

    position: int
    item: str
    title: str
    source: str
    score: float
    reasons: list[Reason]
    base: float
    attribution: str


@dataclass(frozen=True)
class LookedUp:
    """A shopper's list as she would get it now.

    Attributes:
        reason: where the list comes from.
        history: her last events, newest first: (kind, title, day).
        num_events: of hers, in all.
    """

    shopper: str
    reason: str
    version: str
    lines: list[Shown]
    history: list[tuple[str, str, str]]
    num_events: int


async def look_up(shop: LiveShop, shopper: str) -> LookedUp:
    """On the event loop; counts neither as shown nor in any metric."""
    lists, ranked, events = await _home(shop, shopper, explain=True)
    lines = []
    for one in ranked.items:
        about = one.explanation
        parts = () if about is None else about.contributions
        whole = sum(max(part.value, 0.0) for part in parts) + max(0.0 if about is None else about.others, 0.0)
        reasons = [Reason(part.title or part.item, part.value / whole) for part in parts if part.value > 0]
        base, how = (0.0, "") if about is None else (about.base, str(about.attribution))
        lines.append(
            Shown(
                one.position,
                one.item,
                _title(lists, one.item),
                one.source,
                one.score,
                reasons[:_MOST_REASONS],
                base,
                how,
            )
        )
    history = [
        (one.kind.value, _title(lists, one.item), _day(int(one.timestamp // _DAY_S)))
        for one in reversed(events[-_MOST_HISTORY:])
    ]
    return LookedUp(shopper, ranked.reason, ranked.served.version, lines, history, len(events))


async def _home(shop: LiveShop, shopper: str, *, explain: bool) -> tuple[Lists, RankedList, Sequence[StoredEvent]]:
    lists = await shop.lists_for(shopper)
    events = await waiting(shop.store, shop.store.history, shopper)
    return lists, lists.home(events, Query(n=LIST_LENGTH, explain=explain)), events


def _title(lists: Lists, key: str) -> str:
    place = lists.shelf.position(key)
    return str(lists.shelf.titles[place]) if place != NOT_HERE else ""


def _read_budget(place: str, shop: str) -> Budget:
    (book,) = read_source(place, shop)
    (copy,) = book.shops
    account = counted(copy)
    now = ledger_rules.figures(account, rollback_detectable=bool(copy.receipts))
    points = [
        (
            datetime.fromisoformat(one["utc"]).timestamp(),
            one["spent"],
            f"{one['utc'][:10]}: {one['what']}, ε {one['spent']:.3g}",
        )
        for one in history(copy)
    ]
    points.append((max(time.time(), points[-1][0]), now.epsilon, f"now: ε {now.epsilon:.3g}"))
    return Budget(
        now.budget.epsilon,
        now.budget.delta,
        now.budget.period == "year",
        now.epsilon,
        now.committed_epsilon,
        now.lifetime_epsilon,
        left(account),
        now.num_charges,
        Line("spent", points, is_step=True),
    )


def _summed(rows: Iterable[ClickThrough], name: Callable[[ClickThrough], str]) -> dict[str, list[ClickThrough]]:
    found: dict[str, list[ClickThrough]] = defaultdict(list)
    for row in rows:
        found[name(row)].append(row)
    return dict(found)


def _rate(name: str, rows: Iterable[ClickThrough]) -> Rate:
    pairs = [(row.shown, row.clicked) for row in rows]
    return Rate(name, sum(shown for shown, _ in pairs), sum(clicked for _, clicked in pairs))


def _most(rate: Rate) -> int:
    return -rate.shown


def _per_day(rows: Iterable[ClickThrough]) -> dict[int, int]:
    found: dict[int, int] = defaultdict(int)
    for row in rows:
        found[row.day] += row.shown
    return dict(sorted(found.items()))


def _by_day(rows: Sequence[ClickThrough]) -> list[tuple[float, float, str]]:
    points = []
    for day, found in sorted(_summed(rows, lambda row: str(row.day)).items()):
        rate = _rate("", found)
        text = f"{_day(int(day))}: {rate.clicked:,} of {rate.shown:,} lists clicked, {rate.share:.1%}"
        points.append((int(day) * _DAY_S, rate.share, text))
    return points


def _day(day: int) -> str:
    """Of a day since 1970."""
    return f"{datetime.fromtimestamp(day * _DAY_S, UTC):%-d %b %Y}"
