"""Filling a list from its stages: filters, boosts, diversity, pins, places reserved for new items, explanations."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from fedrec.errors import ConfigError
from fedrec.shop.lists.diversity import spread_out
from fedrec.shop.lists.ranked import Contribution, Explanation, ListedItem, Query, Source
from fedrec.shop.lists.serving_model import Attribution
from fedrec.shop.lists.shelf import Shelf
from fedrec.shop.lists.stages import NEVER, Stage
from fedrec.shop.lists.taste import TasteSettings

_POOL = 100
_MOST_SPREAD = 200
"""Places that diversity orders, `_POOL` by `_POOL`, so that a longer list begins with the shorter one; a list that goes
on further goes on by score."""

_GROUP = 64
_MIX = (np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9))

Likeness = Callable[[np.ndarray], np.ndarray]
"""int64 (num_places,) of the shelf -> float64 (num_places, num_places): how alike they are, 1 = the same thing."""


@dataclass(frozen=True)
class ListSettings:
    """How lists are made.

    Attributes:
        taste: what events say.
        max_history: her last items that count, at most; >= 1.
        new_share: of every list's places, reserved for items that the model does not know; in [0, 0.5], 0 = none.
        max_contributions: named in an explanation; >= 1.
    """

    taste: TasteSettings = field(default_factory=TasteSettings)
    max_history: int = 200
    new_share: float = 0.1
    max_contributions: int = 3

    def __post_init__(self) -> None:
        for name in ("max_history", "max_contributions"):
            if not getattr(self, name) >= 1:
                raise ConfigError(f"{name} = {getattr(self, name)}: give a whole number of at least 1")
        if not 0 <= self.new_share <= 0.5:
            raise ConfigError(f"new_share = {self.new_share}: give a share from 0 to 0.5")


@dataclass(slots=True, repr=False)
class Place:
    """An item on a list in the making; ``stage`` None = pinned."""

    item: int
    score: float
    boost: float
    source: Source
    stage: Stage | None


def best(scores: np.ndarray, count: int, seed: int | None = None) -> np.ndarray:
    """int64: the ``count`` best places, best first, `NEVER` left out; fewer where there are no more.

    Equal scores are in order of place, or at random by ``seed``; a longer list begins with the shorter one.
    """
    places = np.flatnonzero(scores >= _low_bar(scores, count))
    places = places[scores[places] > NEVER]
    ties = places if seed is None else _mixed(places, seed)
    return places[np.lexsort((ties, -scores[places]))[:count]]


def _low_bar(scores: np.ndarray, count: int) -> float:
    """A value that at least ``count`` scores reach, but few more: the count-th best of the maxima of small groups.

    Cheaper than a partition, since it only looks once at most scores; a group is a column, so that numpy compares
    whole rows at once.
    """
    size = min(len(scores) // (4 * count), _GROUP)
    if size < 2:
        return NEVER
    whole = len(scores) // size * size
    maxima = scores[:whole].reshape(size, -1).max(axis=0)
    return float(np.partition(maxima, len(maxima) - count)[len(maxima) - count])


def fill(
    stages: Sequence[Stage],
    new: Stage,
    new_share: float,
    query: Query,
    *,
    shelf: Shelf,
    is_allowed: np.ndarray,
    likeness: Likeness,
) -> list[Place]:
    """A list from its beginning to the last place asked for.

    Args:
        stages: in this order, until the list is full.
        new: ranks the items that reserved places are for.
        new_share: of all places, reserved.
        is_allowed: bool, (num_items,); used up.
        likeness: for diversity.
    """
    count = query.offset + query.n
    pinned = [place for place in dict.fromkeys(shelf.positions(query.pin).tolist()) if is_allowed[place]]
    is_allowed[pinned] = False
    listed = [Place(place, 0.0, 0.0, Source.PINNED, None) for place in pinned]
    num_new = count if int(count * new_share) else 0  # some of them may stand on ordinary places, too
    reserved = _ranked(new, query, num_new, shelf, is_allowed.copy(), likeness)
    rest: list[Place] = []
    for stage in stages:
        if len(rest) >= count:
            break
        rest += _ranked(stage, query, count - len(rest), shelf, is_allowed, likeness)
        is_allowed[[place.item for place in rest]] = False
    return _interleaved(listed, rest, reserved, new_share, count)


def _interleaved(
    listed: list[Place], rest: list[Place], reserved: list[Place], new_share: float, count: int
) -> list[Place]:
    """Every reserved place gets a new item, while there are any; nothing is listed twice."""
    if not reserved:
        return (listed + rest)[:count]
    seen = {place.item for place in listed}
    ordinary, fresh = iter(rest), iter(reserved)

    def following(places: Iterator[Place]) -> Place | None:
        found = next((place for place in places if place.item not in seen), None)
        if found is not None:
            seen.add(found.item)
        return found

    while len(listed) < count:
        at = len(listed)
        is_reserved = int((at + 1) * new_share) > int(at * new_share)
        sources = (fresh, ordinary) if is_reserved else (ordinary, fresh)
        found = following(sources[0]) or following(sources[1])
        if found is None:
            break
        listed.append(found)
    return listed[:count]


def _ranked(
    stage: Stage, query: Query, count: int, shelf: Shelf, is_allowed: np.ndarray, likeness: Likeness
) -> list[Place]:
    """A stage's best allowed items."""
    candidates = stage.candidates
    if count == 0 or (candidates is not None and len(candidates) == 0):
        return []
    scores = stage.scores()
    boosts = _boosts(query.boost, scores, candidates, shelf)
    np.putmask(scores, ~(is_allowed if candidates is None else is_allowed[candidates]), NEVER)
    is_spread = query.diversity > 0
    places = best(scores, -(-count // _POOL) * _POOL if is_spread else count, query.seed)
    for start in range(0, min(count, _MOST_SPREAD) if is_spread else 0, _POOL):
        pool = places[start : start + _POOL]
        of_pool = pool if candidates is None else candidates[pool]
        chosen = pool[spread_out(scores[pool], likeness(of_pool), query.diversity, count - start)]
        places[start : start + len(chosen)] = chosen
    places = places[:count]
    values = scores[places].tolist()
    items = places if candidates is None else candidates[places]
    found = zip(items.tolist(), values, stage.sources(items), strict=True)
    return [Place(item, score, boosts.get(item, 0.0), source, stage) for item, score, source in found]


def _boosts(
    boost: Mapping[str, float], scores: np.ndarray, candidates: np.ndarray | None, shelf: Shelf
) -> dict[int, float]:
    """Add the boosts to the scores; what was added by position, in units of the scores."""
    if not boost:
        return {}
    wanted = {shelf.position(key): value for key, value in boost.items()}
    items = np.arange(len(scores)) if candidates is None else candidates
    places = np.flatnonzero(np.isin(items, list(wanted)))
    if len(places) == 0:
        return {}
    listed = scores[scores > NEVER]
    spread = (float(listed.std()) if len(listed) else 0.0) or 1.0
    added = {item: wanted[item] * spread for item in items[places].tolist()}
    scores[places] += list(added.values())
    return added


def as_listed(places: Sequence[Place], first: int, shelf: Shelf, max_contributions: int) -> list[ListedItem]:
    """The answer's items.

    Args:
        first: position of the first in the whole list.
        max_contributions: named in an explanation; 0 = no explanations.
    """
    explained = _explained(places, shelf, max_contributions) if max_contributions else [None] * len(places)
    return [
        ListedItem(shelf.keys[place.item], place.score, place.source, first + at, explanation)
        for at, (place, explanation) in enumerate(zip(places, explained, strict=True))
    ]


def _explained(places: Sequence[Place], shelf: Shelf, limit: int) -> list[Explanation | None]:
    explanations: list[Explanation | None] = [None] * len(places)
    for stage in {id(place.stage): place.stage for place in places}.values():
        at = [number for number, place in enumerate(places) if place.stage is stage]
        if stage is None:
            for number in at:
                explanations[number] = Explanation(0.0, 0.0, (), 0.0, Attribution.EXACT)
            continue
        items = np.array([places[number].item for number in at], np.int64)
        parts = stage.parts(items)
        order = np.argsort(-np.abs(parts.contributions), axis=1, kind="stable")[:, :limit]
        history = stage.history
        for row, number in enumerate(at):
            values = parts.contributions[row]
            named = [place for place in order[row].tolist() if values[place] != 0]
            contributions = tuple(
                Contribution(shelf.keys[item], str(shelf.titles[item]), float(values[place]))
                for place, item in zip(named, history[named].tolist(), strict=True)
            )
            others = float(values.sum() - values[named].sum())
            base = float(parts.base[row])
            explanations[number] = Explanation(base, places[number].boost, contributions, others, parts.attribution)
    return explanations


def _mixed(places: np.ndarray, seed: int) -> np.ndarray:
    """uint64: one random key for each place, the same for the same seed."""
    keys = (places.astype(np.uint64) + np.array([seed % 2**32], np.uint64) * _MIX[1]) * _MIX[0]
    keys ^= keys >> np.uint64(29)
    return keys * _MIX[1]
