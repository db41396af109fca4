"""The catalogue grows without moving what is there, and filters mean what they say."""

from __future__ import annotations

import numpy as np
import pytest

from fedrec.errors import ConfigError
from fedrec.shop.lists.shelf import NOT_HERE, Shelf, Wanted
from fedrec.shop.lists.taste import TasteSettings, taste_of

from .shelves import Event, Item


def test_an_upsert_changes_in_place_and_new_items_come_last():
    first = Shelf.of([Item("b", price=2.0), Item("a", stock=0), Item("b", price=3.0)])
    second = first.with_items([Item("c", "pot", "x|y"), Item("a", stock=None)])
    assert (first.keys[: first.num_items], second.keys) == (["b", "a"], ["b", "a", "c"])
    assert first.price.tolist()[0] == 3.0
    assert first.mask(Wanted()).tolist() == [True, False]
    assert second.mask(Wanted()).tolist() == [True, True, True]
    assert (first.position("c"), second.position("c")) == (NOT_HERE, 2)
    assert second.category(2) == "x|y"
    with pytest.raises(ConfigError, match="not the newest"):
        first.with_items([Item("d")])


def test_hidden_items_are_never_shown_until_they_are_put_back():
    shelf = Shelf.of([Item("a"), Item("b", is_hidden=True), Item("c")])
    hidden = shelf.with_hidden(["a", "nobody"])
    assert hidden.mask(Wanted()).tolist() == [False, False, True]
    assert hidden.with_items([Item("a")]).mask(Wanted()).tolist() == [True, False, True]
    assert hidden.with_hidden(["b"], is_hidden=False).mask(Wanted()).tolist() == [False, True, True]


@pytest.mark.parametrize(
    ("wanted", "shown"),
    [
        (Wanted(), "abde"),
        (Wanted(is_in_stock=False), "abcde"),
        (Wanted(categories_in=frozenset({"x"})), "ab"),
        (Wanted(categories_in=frozenset({"x", "z"})), "abd"),
        (Wanted(categories_out=frozenset({"y"})), "ade"),
        (Wanted(price_min=2.0), "bd"),
        (Wanted(price_max=2.0), "ab"),
        (Wanted(price_min=0.0), "abd"),
        (Wanted(price_min=2.0, price_max=2.0, categories_in=frozenset({"y"})), "b"),
    ],
)
def test_filters_by_hand(wanted, shown):
    shelf = Shelf.of(
        [
            Item("a", category="x", price=1.0),
            Item("b", category="x | y", price=2.0, stock=1),
            Item("c", category="x", price=2.0, stock=0),
            Item("d", category="z", price=3.0),
            Item("e"),
        ]
    )
    assert "".join(np.array(shelf.keys)[shelf.mask(wanted)]) == shown
    assert shelf.mask(wanted) is shelf.mask(wanted)


def test_a_taste_holds_the_strongest_event_of_each_item_in_the_order_of_the_last():
    shelf = Shelf.of([Item(key) for key in "abcd"])
    events = [
        Event("a", "view"),
        Event("b", "cart"),
        Event("a", "cart"),
        Event("b", "view"),
        Event("zz"),
        Event("d", "x"),
    ]
    taste = taste_of(events, shelf, TasteSettings())
    assert (taste.items.tolist(), taste.strengths.tolist()) == ([0, 1], [0.5, 0.5])
    assert taste.latest(1).items.tolist() == [1]
    assert taste.had.tolist() == []


def test_an_event_of_little_strength_does_not_take_a_dislike_back():
    shelf = Shelf.of([Item("a")])
    kinds = ["purchase", "return", "view"]
    taste = taste_of([Event("a", kind) for kind in kinds], shelf, TasteSettings())
    assert (taste.items.tolist(), taste.against.tolist(), taste.had.tolist()) == ([], [0], [0])
    taken_back = taste_of([Event("a", kind) for kind in [*kinds, "like"]], shelf, TasteSettings())
    assert (taken_back.items.tolist(), taken_back.against.tolist()) == ([0], [])


@pytest.mark.parametrize("strengths", [{"view": 1.5}, {"view": np.nan}, {"dislike": 0.1}])
def test_bad_strengths_are_refused(strengths):
    with pytest.raises(ConfigError, match="strength of"):
        TasteSettings(strengths=strengths)
