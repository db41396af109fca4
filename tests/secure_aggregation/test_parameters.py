"""The agreement on secure aggregation: what is refused, and that its digest covers everything."""

from __future__ import annotations

import json
from dataclasses import fields, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedrec.errors import BadAssumption, BadMessage, ConfigError, FedrecError, NoColluders, TooFewHonestShops
from fedrec.secure_aggregation.graph import COMPLETE_UP_TO
from fedrec.secure_aggregation.parameters import Parameters, usual_threshold
from fedrec.secure_aggregation.rules import run_digest

from .parties import agreement, identity

GOOD = agreement(5, min_shops=4)


def test_the_usual_threshold_is_the_least_that_the_rule_allows():
    assert usual_threshold(5, 1) == 4
    assert usual_threshold(10, 1) == 6
    assert usual_threshold(10, 2) == 7


@given(num_shops=st.integers(2, 12), colluders=st.integers(0, 12), min_shops=st.integers(0, 13), t=st.integers(0, 13))
def test_exactly_the_rule_is_enforced(num_shops, colluders, min_shops, t):
    names = [f"shop-{place}" for place in range(num_shops)]
    keys = tuple(identity(name).public.raw.hex() for name in names)
    allowed = (num_shops + colluders) / 2 < t <= min_shops <= num_shops and min_shops - colluders >= 1
    try:
        Parameters(tuple(names), keys, min_shops, colluders, t)
    except FedrecError:
        assert not allowed
    else:
        assert allowed


def test_one_shop_alone_has_no_sum_to_hide_in():
    with pytest.raises(TooFewHonestShops, match="no sum to hide in"):
        agreement(1, min_shops=1, colluders=0)


def test_two_shops_are_a_pair_that_reports_warn_of():
    assert agreement(2, min_shops=2).is_pair
    assert not agreement(3, min_shops=3).is_pair


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"min_shops": 6}, TooFewHonestShops),
        ({"min_shops": 1}, TooFewHonestShops),
        ({"colluders": -1}, NoColluders),
        ({"colluders": 4}, TooFewHonestShops),
        ({"threshold": 3}, BadAssumption),
        ({"threshold": 5}, BadAssumption),
        ({"rounds_per_setup": 0}, ConfigError),
        ({"rounds_per_setup": 257}, ConfigError),
        ({"names": ("shop-0",) * 5}, ConfigError),
        ({"names": ("shop-0", "shop-1", "shop-2", "shop-3", "\ud800")}, ConfigError),
        ({"names": ("shop-0", "shop-1", "shop-2", "shop-3", 4)}, ConfigError),
        ({"names": ("shop-0", "shop-1", "shop-2", "shop-3", "")}, ConfigError),
        ({"keys": GOOD.keys[:4]}, ConfigError),
        ({"keys": GOOD.keys[:4] + GOOD.keys[:1]}, ConfigError),
        ({"keys": (*GOOD.keys[:4], GOOD.keys[4].upper())}, ConfigError),
        ({"keys": (*GOOD.keys[:4], "not hexadecimal")}, ConfigError),
        ({"keys": (*GOOD.keys[:4], " " + GOOD.keys[4])}, ConfigError),
        ({"keys": (*GOOD.keys[:4], GOOD.keys[4][2:])}, BadMessage),
        ({"min_shops": 4.0}, ConfigError),
        ({"colluders": True}, ConfigError),
        ({"threshold": "4"}, ConfigError),
        ({"min_shops": float("nan")}, ConfigError),
        ({"names": list(GOOD.names)}, ConfigError),
    ],
)
def test_values_out_of_range_are_refused(change, error):
    with pytest.raises(error):
        replace(GOOD, **change)


def test_too_few_shops_in_a_sum_are_refused_by_the_name_of_the_setting():
    with pytest.raises(BadAssumption, match=r"^min_shops = 3: .* give 4 to 5$"):
        agreement(5, min_shops=3)


def test_they_come_back_from_json():
    stored = json.loads(json.dumps(GOOD.to_json()))
    assert Parameters.from_json(stored) == GOOD
    assert Parameters.from_json(stored).digest == GOOD.digest
    for bad in ({}, {**stored, "more": 1}, {**stored, "names": 3}):
        with pytest.raises((KeyError, TypeError)):
            Parameters.from_json(bad)


def test_the_digest_covers_every_field_and_the_run():
    longer = agreement(7, min_shops=6)
    changed = {
        "names": (*longer.names[:6], "another"),
        "keys": (*longer.keys[:6], identity("another").public.raw.hex()),
        "min_shops": 7,
        "colluders": 0,
        "threshold": 6,
        "rounds_per_setup": 4,
    }
    assert changed.keys() == {field.name for field in fields(Parameters)}
    digests = {replace(longer, **{name: value}).digest for name, value in changed.items()}
    assert len(digests | {longer.digest}) == len(changed) + 1
    swapped = replace(longer, names=(longer.names[1], longer.names[0], *longer.names[2:]))
    assert swapped.digest not in digests | {longer.digest}
    assert len({run_digest(longer, "a"), run_digest(longer, "b"), run_digest(GOOD, "a")}) == 3


def test_small_federations_use_the_complete_graph():
    assert agreement(COMPLETE_UP_TO, min_shops=25).num_neighbours == COMPLETE_UP_TO - 1
    assert agreement(100, min_shops=80).num_neighbours < 60


def test_a_shops_key_is_found_by_its_place():
    assert GOOD.key_at(3) == identity("shop-3").public
    assert GOOD.place_of == {f"shop-{place}": place for place in range(5)}
