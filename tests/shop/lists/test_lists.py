"""Lists by hand on small asymmetric models, and what holds for every list."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedrec.errors import ConfigError, DataError
from fedrec.shop.lists import filling
from fedrec.shop.lists.filling import ListSettings
from fedrec.shop.lists.lists import Lists
from fedrec.shop.lists.neighbours import Neighbours
from fedrec.shop.lists.ranked import Query, Source
from fedrec.shop.lists.shelf import Wanted
from fedrec.shop.lists.trends import Trends, TrendSettings

from .shelves import JOINT, Event, Item, bought, letters, linear, shelf_of

WEIGHTS = [  # row = bought
    [0, 5, 3, 0, 0, -2],
    [1, 0, 0, 4, 0, 0],
    [0, 2, 0, 0, 0, 0],
    [0, 0, 1, 0, 0, 0],
    [2, 0, 0, 0, 0, 0],
    [0, 0, 0, 0, 7, 0],
]
POPULARITY = [1, 2, 3, 4, 5, 6]
NO_NEW = ListSettings(new_share=0.0)


def lists(count: int = 6, **fields: object) -> Lists:
    return Lists(shelf_of(count, **fields), linear(WEIGHTS, POPULARITY), NO_NEW)  # type: ignore[arg-type]


def test_a_home_list_by_hand():
    found = lists().home(bought("a"), Query(n=6))
    assert found.keys == ["b", "c", "e", "d", "f"]  # 5, 3, then popularity, f against
    assert [one.source for one in found.items] == ["personal", "personal", "popular", "popular", "personal"]
    assert [one.score for one in found.items] == pytest.approx([5.002, 3.003, 0.005, 0.004, -1.994])
    assert [one.position for one in found.items] == [0, 1, 2, 3, 4]
    assert found.reason is Source.PERSONAL
    assert (found.served.version, found.served.mode, found.served.epsilon_outside) == ("r1", "distributed", 2.0)


def test_a_view_says_less_than_a_purchase():
    assert lists().home([Event("a", "view"), Event("f")], Query(n=2)).keys == ["e", "b"]
    assert lists().home([Event("a"), Event("f", "view")], Query(n=3)).keys == ["b", "c", "e"]


def test_an_event_counts_at_once_and_bought_items_leave():
    assert lists().home([], Query(n=2)).keys == ["f", "e"]
    assert lists().home(bought("f"), Query(n=2)).keys == ["e", "d"]
    again = lists().home(bought("f", "a"), Query(n=6, include_bought=True))
    assert set(again.keys) == set(letters(6))


@pytest.mark.parametrize("kind", ["dislike", "return"])
def test_what_she_disliked_or_returned_is_never_listed(kind):
    events = [*bought("a", "b"), Event("b", kind)]
    found = lists().home(events, Query(n=6, include_bought=True, pin=("b",)))
    assert "b" not in found.keys
    assert found.keys[:2] == ["c", "e"]  # and says nothing: d would be second by b
    assert lists().home([*events, Event("b")], Query(n=6)).keys[0] == "d"


def test_a_low_rating_says_only_that_she_had_it():
    found = lists().home([Event("f", "rating", 2.0), Event("a", "rating", 5.0)], Query(n=6))
    assert found.keys[0] == "b"
    assert "f" not in found.keys


def test_the_chain_and_its_reasons():
    here = Lists(
        shelf_of(9, title=["pot"] * 6 + ["red lamp", "blue lamp", "chair"]), linear(WEIGHTS, POPULARITY), NO_NEW
    )
    assert here.home(bought("a"), Query()).reason is Source.PERSONAL
    assert here.session(["a", "a", "zz"], Query()).reason is Source.SESSION
    by_words = here.home(bought("g"), Query(n=9))
    assert (by_words.reason, by_words.keys[0]) == (Source.CONTENT, "h")
    assert [one.source for one in by_words.items[:2]] == [Source.CONTENT, Source.POPULAR]
    for nothing in ([], bought("nobody-sells-this"), [Event("a", "dislike")]):
        assert here.home(nothing, Query()).reason is Source.POPULAR


def test_a_list_that_filters_leave_short_is_filled_from_the_next_stage():
    here = Lists(
        shelf_of(8, title=["pot"] * 6 + ["lamp", "pot"], category=["x"] * 5 + ["y", "y", "y"]),
        linear(WEIGHTS, POPULARITY),
        NO_NEW,
    )
    found = here.home(bought("a"), Query(wanted=Wanted(categories_in=frozenset({"y"}))))
    assert found.keys == ["f", "h", "g"]
    assert [one.source for one in found.items] == [Source.PERSONAL, Source.CONTENT, Source.POPULAR]


def test_reserved_places_hold_new_items_those_like_her_history_first():
    shelf = shelf_of(9, title=["lamp"] * 6 + ["pot", "lamp", "pot"], created=[0] * 6 + [1, 2, 3])
    here = Lists(shelf, linear(WEIGHTS, POPULARITY), ListSettings(new_share=0.25))
    found = here.home(bought("a"), Query(n=8))
    assert found.keys == ["b", "c", "e", "h", "d", "f", "g", "i"]
    assert [one.source for one in found.items][3::4] == [Source.NEW, Source.NEW]
    assert here.home(bought("a"), Query(n=3)).keys == ["b", "c", "e"]


def test_pins_come_first_and_boosts_move_items():
    assert lists().home(bought("a"), Query(n=3, pin=("d", "a", "zz", "e"))).keys == ["d", "e", "b"]  # a is hers
    assert lists().home(bought("a"), Query(n=2, boost={"d": 3.0})).keys == ["d", "b"]
    assert lists().home(bought("a"), Query(n=1, boost={"b": -3.0})).keys == ["c"]


def test_trends_take_the_place_of_the_models_popularity():
    trends = Trends()
    trends.add(np.array([2]), np.ones(1), np.zeros(1), now=0.0)
    here = Lists(shelf_of(6), linear(WEIGHTS, POPULARITY), NO_NEW, trends)
    assert here.home([], Query(n=1)).keys == ["c"]


def test_a_shelf_that_grows_keeps_what_was_known():
    here = lists()
    later = here.with_shelf(here.shelf.with_items([Item("g"), Item("h")]))
    assert later.home(bought("a"), Query(n=3)).keys == ["b", "c", "e"]
    assert later.home(bought("a"), Query(n=9)).keys[-2:] == ["g", "h"]
    assert here.home(bought("a"), Query(n=9)).keys == ["b", "c", "e", "d", "f"]


def test_a_session_and_a_cart_do_not_list_what_they_hold():
    assert lists().session(["a"], Query(n=3, include_bought=True)).keys == ["b", "c", "e"]
    found = lists().cart(["a", "d"], Query(n=3))
    assert found.keys == ["b", "c", "e"]  # c: 3 by a, 1 by d
    assert [one.score for one in found.items] == pytest.approx([5.002, 4.003, 0.005])
    hers = [*bought("b"), Event("c", "dislike")]
    assert lists().cart(["a", "d"], Query(n=3), hers).keys == ["e", "f"]


def test_similar_items_by_hand():
    words = ["lamp", "pot", "pot", "pot", "lamp", "pot"]
    here = Lists(shelf_of(6, title=words), linear(WEIGHTS, POPULARITY), NO_NEW)
    found = here.similar("a", Query(n=6))
    assert found.keys == ["b", "c", "e", "f", "d"]
    assert [one.source for one in found.items] == ["similar", "similar", "content", "popular", "popular"]
    assert found.items[0].score == pytest.approx(5.0)
    assert found.reason is Source.SIMILAR
    with pytest.raises(DataError, match="no such item"):
        here.similar("zz", Query())


def test_bought_together_is_by_the_shops_own_pairs_where_they_may_be_served():
    model = linear(WEIGHTS, POPULARITY)
    pairs = Neighbours.strongest([np.eye(6)[::-1]], 6)  # a with f, b with e, c with d
    here = Lists(shelf_of(6), replace(model, pairs=pairs), NO_NEW)
    found = here.bought_together("a", Query(n=3))
    assert found.keys == ["f", "b", "c"]
    assert [one.source for one in found.items] == ["bought_together", "similar", "similar"]
    assert lists().bought_together("a", Query(n=3)).reason is Source.SIMILAR


def test_popular_trending_and_newest():
    trends = Trends(TrendSettings(half_life_s=10.0))
    trends.add(np.array([2, 2, 2, 3, 3]), np.ones(5), np.array([0.0, 0, 0, 30, 30]), now=30.0)
    here = Lists(shelf_of(6, created=[3, 1, 4, 6, 5, 9]), linear(WEIGHTS, POPULARITY), NO_NEW, trends)
    assert here.popular(Query(n=2)).keys == ["c", "d"]
    late = here.trending(Query(n=3))
    assert late.keys == ["d", "c", "a"]
    assert [one.source for one in late.items] == ["trending", "trending", "popular"]
    assert [one.score for one in late.items] == pytest.approx([2.0, 3 / 8, 0.0])
    assert here.newest(Query(n=3)).keys == ["f", "d", "e"]


def test_under_joint_dp_trends_are_not_looked_at():
    trends = Trends()
    trends.add(np.array([2]), np.ones(1), np.zeros(1), now=0.0)
    here = Lists(shelf_of(6), linear(WEIGHTS, POPULARITY, served=JOINT), NO_NEW, trends)
    for found in (here.home([], Query(n=2)), here.popular(Query(n=2)), here.trending(Query(n=2))):
        assert found.keys == ["f", "e"]
        assert found.reason is Source.POPULAR
        assert found.served.inside_shop == "joint_dp"


def test_diversity_orders_the_first_places_and_the_list_goes_on_by_score(monkeypatch):
    asked = []
    monkeypatch.setattr(filling, "_MOST_SPREAD", 3)
    monkeypatch.setattr(filling, "_POOL", 6)
    model = linear(np.zeros((20, 20)), popularity=list(range(20, 0, -1)))
    here = Lists(shelf_of(20), model, ListSettings(new_share=0.0))
    monkeypatch.setattr(here, "_likeness", lambda items: asked.append(len(items)) or np.ones((len(items),) * 2))
    assert here.popular(Query(n=4, offset=10, diversity=0.5)).keys == list("klmn")
    assert asked == [6]


@pytest.mark.parametrize("has_words", [True, False])
def test_diversity_is_by_words_and_by_the_model_where_there_are_none(has_words):
    """b and c are alike, d is not; by score b, c, d."""
    weights = np.zeros((4, 4))
    weights[0] = [0, 5, 4, 3]
    weights[1, 2] = 0 if has_words else 2
    shelf = shelf_of(4, title=["pot", "lamp", "lamp", "tea"] if has_words else [""] * 4)
    here = Lists(shelf, linear(weights), NO_NEW)
    assert here.home(bought("a"), Query(n=3)).keys == ["b", "c", "d"]
    assert here.home(bought("a"), Query(n=3, diversity=0.5)).keys == ["b", "d", "c"]


@pytest.mark.parametrize("diversity", [0.0, 0.5])
def test_pages_are_parts_of_one_list(diversity):
    """Also where new items stand on reserved places and on others, and where a list is as long as several pools."""
    rng = np.random.default_rng(0)
    shelf = shelf_of(450, title=[f"{rng.choice(['red', 'blue'])} pot number {row % 13}" for row in range(450)])
    model = linear(np.diag(rng.random(149), 1), rng.permutation(150))
    for new_share, last, events in ((0.3, 30, bought("a", letters(450)[200])), (0.0, 260, [])):
        here, query = Lists(shelf, model, ListSettings(new_share=new_share)), Query(diversity=diversity, seed=1)
        whole = here.home(events, replace(query, n=last)).keys
        pages = [here.home(events, replace(query, n=5, offset=offset)).keys for offset in range(0, last, 5)]
        assert [key for page in pages for key in page] == whole
        assert len(set(whole)) == last


KEYS = st.sampled_from(letters(12))
QUERIES = st.builds(
    Query,
    n=st.integers(1, 14),
    offset=st.integers(0, 5),
    wanted=st.builds(
        Wanted,
        categories_in=st.frozensets(st.sampled_from("xyz"), max_size=2),
        categories_out=st.frozensets(st.sampled_from("xyz"), max_size=1),
        price_min=st.none() | st.floats(0, 5),
        price_max=st.none() | st.floats(5, 10),
        is_in_stock=st.booleans(),
    ),
    exclude=st.frozensets(KEYS, max_size=3),
    include_bought=st.booleans(),
    diversity=st.sampled_from([0.0, 0.0, 0.4, 1.0]),
    boost=st.dictionaries(KEYS, st.floats(-3, 3), max_size=2),
    pin=st.lists(KEYS, max_size=2).map(tuple),
    explain=st.booleans(),
    seed=st.none() | st.integers(0, 10),
)
EVENTS = st.lists(
    st.builds(Event, item=KEYS, kind=st.sampled_from(["purchase", "view", "cart", "like", "dislike", "return"]))
)


@given(query=QUERIES, events=EVENTS, seed=st.integers(0, 10_000), new_share=st.sampled_from([0.0, 0.1, 0.5]))
@settings(max_examples=150, deadline=None)
def test_no_list_shows_what_the_filters_forbid_and_explanations_sum_to_the_scores(query, events, seed, new_share):
    rng = np.random.default_rng(seed)
    category, price = rng.choice(["x", "y", "x|z", ""], 12), rng.choice([1.0, 5.0, 9.0, None], 12)
    stock, hidden = rng.choice([0, 3, None], 12), rng.random(12) < 0.2
    shelf = shelf_of(12, title=["lamp"] * 12, category=category, price=price, stock=stock, is_hidden=hidden)
    model = linear(np.round(rng.normal(0, 1, (9, 9)), 1) * (rng.random((9, 9)) < 0.5), rng.integers(0, 5, 9))
    here = Lists(shelf, model, ListSettings(new_share=new_share))
    found = here.home(events, query)
    disliked = {
        event.item
        for place, event in enumerate(events)
        if event.kind in ("dislike", "return")
        and not any(late.item == event.item and late.kind in ("purchase", "like") for late in events[place:])
    }
    had = {event.item for event in events if event.kind == "purchase"}
    allowed = []
    for place, key in enumerate(letters(12)):
        names = set(category[place].split("|")) - {""}
        is_fine = not hidden[place] and key not in query.exclude | disliked
        is_fine &= query.include_bought or key not in had
        is_fine &= not (query.wanted.is_in_stock and stock[place] == 0)
        is_fine &= not query.wanted.categories_in or bool(names & query.wanted.categories_in)
        is_fine &= not names & query.wanted.categories_out
        for limit, sign in ((query.wanted.price_min, 1), (query.wanted.price_max, -1)):
            is_fine &= limit is None or (price[place] is not None and sign * price[place] >= sign * limit)
        if is_fine:
            allowed.append(key)
    assert set(found.keys) <= set(allowed)
    assert len(found.keys) == len(set(found.keys)) == max(0, min(query.n, len(allowed) - query.offset))
    for one in found.items:
        if query.explain:
            why = one.explanation
            total = why.base + why.boost + why.others + sum(part.value for part in why.contributions)
            assert total == pytest.approx(one.score, abs=1e-9)
    longer = here.home(events, replace(query, n=30, offset=0))
    assert longer.keys[query.offset :][: query.n] == found.keys
    assert here.home(events, query) == found


@pytest.mark.parametrize(
    "wrong",
    [{"n": 0}, {"offset": -1}, {"diversity": 1.1}, {"diversity": np.nan}, {"boost": {"a": np.inf}}, {"seed": -1}],
)
def test_bad_queries_are_refused(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        Query(**wrong)
    with pytest.raises(ConfigError, match="price_min"):
        Wanted(price_min=3, price_max=2)
