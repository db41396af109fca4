import itertools

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedrec.errors import BadMessage, ConfigError, ProtocolError, TooFewShops
from fedrec.federation.coordinator_side import Coordinator
from fedrec.federation.plan import RoundPlan
from fedrec.federation.release import release
from fedrec.federation.shop_side import Contribution, contribute
from fedrec.federation.terms import Terms
from fedrec.models.recommender import PublicInputs

NAMES = ("north", "south", "west")


def answers(coordinator: Coordinator, plan: RoundPlan, histories) -> dict[str, bytes]:
    """Every shop's release."""
    return {
        shop: release(contribute(coordinator.model, plan, rows), plan).to_bytes()
        for shop, rows in zip(coordinator.roster, histories, strict=True)
    }


def test_two_rounds_by_hand(coordinator, histories):
    for expected in ([3, 2, 3, 1], [9, 6, 9, 3]):
        plan = coordinator.next_plan()
        for shop, data in answers(coordinator, plan, histories).items():
            assert coordinator.receive(shop, data)
        closed = coordinator.close()
        assert closed.answered == NAMES
        np.testing.assert_array_equal(coordinator.state["counts"], expected)
    assert coordinator.next_plan() is None
    assert coordinator.next_plan() is None
    assert coordinator.index == 2


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_the_sum_does_not_depend_on_the_order_of_arrival(counting, order):
    # 1e16 + 1 - 1e16: float64 sums differ by order unless they are added in one
    values = [np.array([1e16]), np.array([1.0]), np.array([-1e16])]
    coordinator = Coordinator(counting, PublicInputs(np.array(["apple"])), Terms(NAMES))
    plan = coordinator.next_plan()
    for place in order:
        contribution = Contribution(values[place], plan.spec.layout)
        coordinator.receive(NAMES[place], release(contribution, plan).to_bytes())
    coordinator.close()
    assert coordinator.state["counts"][0] == (1e16 + 1.0) - 1e16


def test_a_release_waits_only_for_shops_before_it(coordinator, histories):
    data = answers(coordinator, coordinator.next_plan(), histories)
    coordinator.receive("west", data["west"])
    assert coordinator.num_waiting == 1
    coordinator.receive("north", data["north"])
    assert coordinator.num_waiting == 1
    coordinator.mark_unavailable("south")
    assert coordinator.num_waiting == 0
    assert coordinator.close().failed == ("south",)
    np.testing.assert_array_equal(coordinator.state["counts"], [3, 1, 3, 0])


def test_a_second_message_of_a_shop_does_not_count(coordinator, histories):
    data = answers(coordinator, coordinator.next_plan(), histories)
    for shop in NAMES:
        assert coordinator.receive(shop, data[shop])
        assert not coordinator.receive(shop, data[shop])
    coordinator.close()
    np.testing.assert_array_equal(coordinator.state["counts"], [3, 2, 3, 1])


def test_an_answer_after_the_shop_was_given_up_does_not_count(coordinator, histories):
    data = answers(coordinator, coordinator.next_plan(), histories)
    coordinator.mark_unavailable("north")
    assert not coordinator.receive("north", data["north"])
    coordinator.receive("south", data["south"])
    coordinator.receive("west", data["west"])
    coordinator.mark_unavailable("west")
    assert coordinator.close().answered == ("south", "west")


def test_messages_of_unknown_shops_and_of_other_rounds_are_refused(coordinator, histories):
    plan = coordinator.next_plan()
    data = answers(coordinator, plan, histories)
    with pytest.raises(BadMessage, match="roster"):
        coordinator.receive("east", data["north"])
    for shop in NAMES:
        coordinator.receive(shop, data[shop])
    coordinator.close()
    with pytest.raises(BadMessage, match="late"):
        coordinator.receive("north", data["north"])
    coordinator.next_plan()
    with pytest.raises(BadMessage, match="round 0"):
        coordinator.receive("north", data["north"])


def test_a_shop_whose_bytes_were_refused_may_still_answer(coordinator, histories):
    data = answers(coordinator, coordinator.next_plan(), histories)
    with pytest.raises(BadMessage):
        coordinator.receive("north", data["north"][:-1])
    assert coordinator.receive("north", data["north"])


def test_too_few_shops_leave_everything_as_it_was(coordinator, histories):
    data = answers(coordinator, coordinator.next_plan(), histories)
    coordinator.receive("west", data["west"])
    with pytest.raises(TooFewShops, match="1 of 3"):
        coordinator.close()
    assert coordinator.index == 0
    assert coordinator.state == {}
    data = answers(coordinator, coordinator.next_plan(), histories)
    for shop in NAMES:
        coordinator.receive(shop, data[shop])
    coordinator.close()
    np.testing.assert_array_equal(coordinator.state["counts"], [3, 2, 3, 1])


def test_one_round_is_open_at_a_time(coordinator):
    coordinator.next_plan()
    with pytest.raises(ProtocolError):
        coordinator.next_plan()
    with pytest.raises(ProtocolError):
        coordinator.restore(0, {})


@pytest.mark.parametrize("min_shops", [0, 4, -1])
def test_an_impossible_minimum_is_refused(counting, public, min_shops):
    with pytest.raises(ConfigError):
        Coordinator(counting, public, Terms(NAMES, min_shops=min_shops))


def test_the_identity_tells_runs_apart(counting, public):
    first = Coordinator(counting, public, Terms(NAMES)).identity()
    assert Coordinator(counting, public, Terms(NAMES)).identity() == first
    others = [
        Coordinator(counting, public, Terms(NAMES, run_id="other")),
        Coordinator(counting, public, Terms(NAMES, min_shops=2)),
        Coordinator(counting, public, Terms(NAMES, clip_norm=1.0)),
        Coordinator(counting, public, Terms(NAMES[::-1])),
        Coordinator(type(counting)(rounds=3), public, Terms(NAMES)),
        Coordinator(counting, PublicInputs(public.items[::-1]), Terms(NAMES)),
    ]
    assert first not in {other.identity() for other in others}


@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_schedule_gives_the_sum_of_the_survivors_or_a_clean_abort(counting, data):
    num_shops = data.draw(st.integers(1, 6))
    min_shops = data.draw(st.integers(1, num_shops))
    roster = tuple(f"s{i}" for i in range(num_shops))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    values = rng.normal(scale=10.0 ** rng.integers(-8, 9, size=(num_shops, 1)), size=(num_shops, 3))
    coordinator = Coordinator(counting, PublicInputs(np.array(list("abc"))), Terms(roster, min_shops=min_shops))
    plan = coordinator.next_plan()
    events = st.tuples(st.integers(0, num_shops - 1), st.sampled_from(["answer", "drop", "garbage"]))
    survivors: dict[int, bool] = {}
    for place, event in data.draw(st.lists(events, max_size=15)):
        if event == "answer":
            message = release(Contribution(values[place], plan.spec.layout), plan).to_bytes()
            assert coordinator.receive(roster[place], message) == (place not in survivors)
            survivors.setdefault(place, True)
        elif event == "drop":
            coordinator.mark_unavailable(roster[place])
            survivors.setdefault(place, False)
        elif place not in survivors:
            with pytest.raises(BadMessage):
                coordinator.receive(roster[place], b"garbage")
    alive = [place for place in range(num_shops) if survivors.get(place)]
    if len(alive) < min_shops:
        with pytest.raises(TooFewShops):
            coordinator.close()
        assert (coordinator.index, coordinator.state) == (0, {})
        return
    assert coordinator.close().answered == tuple(roster[place] for place in alive)
    expected = np.zeros(3)
    for place in alive:
        expected = expected + values[place]
    np.testing.assert_array_equal(coordinator.state["counts"], expected)
