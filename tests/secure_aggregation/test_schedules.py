"""Random schedules: messages lost, delayed, doubled, out of order, broken, shops that crash and come back.

Whatever happens, what opens is the exact sum of the survivors that were named, or nothing opens.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from fedrec.errors import ProtocolError
from fedrec.secure_aggregation.coordinator_session import CoordinatorSession
from fedrec.secure_aggregation.shop_session import ShopSession

from .parties import DTYPES, RUN, SIZE, Parties, agreement, identity, vector

Message = Any
HARMLESS = ("doubled", "asked again", "crashes")
FAULTS = (*HARMLESS, "late", "lost", "broken")


class Schedule:
    """Carries messages as the draws have it; late ones come at the start of some later exchange."""

    def __init__(self, parties: Parties, data: st.DataObject, faults: tuple[str, ...]) -> None:
        self.parties = parties
        self._draw = data.draw
        self._faults = faults
        self._waiting: list[tuple[Callable[[str, Message], bool], str, Message]] = []

    def exchange(
        self, names: tuple[str, ...], ask: Callable[[str], Message], take: Callable[[str, Message], bool]
    ) -> None:
        """Ask these shops in some order, and bring their answers in some order."""
        for late in self._drawn_part(self._waiting):
            self._waiting.remove(late)
            self._bring(*late)
        fates = self._draw(st.dictionaries(st.sampled_from(names), st.sampled_from(self._faults), max_size=2))
        answers = []
        for name in self._draw(st.permutations(names)):
            fate = fates.get(name, "arrives")
            if fate == "crashes" and self._draw(st.booleans()):
                self._crash(name)  # before it was asked
            try:
                answer = ask(name)
            except ProtocolError:
                continue  # an honest shop refuses what does not fit, and is out
            if fate == "asked again":
                assert np.array_equal(ask(name), answer)
            if fate == "crashes":
                self._crash(name)
            if fate == "late":
                self._waiting.append((take, name, answer))
            elif fate != "lost":
                answers += [(name, self._broken(answer) if fate == "broken" else answer)] * (1 + (fate == "doubled"))
        for name, answer in self._draw(st.permutations(answers)) if answers else ():
            self._bring(take, name, answer)

    def _bring(self, take: Callable[[str, Message], bool], name: str, answer: Message) -> None:
        try:
            take(name, answer)
        except ProtocolError:
            event("a message was refused")

    def _drawn_part(self, entries: list[Any]) -> list[Any]:
        return [entry for entry in entries if self._draw(st.booleans())]

    def _crash(self, name: str) -> None:
        stored = self.parties.shops[name].to_bytes()
        shop = ShopSession(self.parties.parameters, name, identity(name), RUN)
        shop.restore(stored)
        self.parties.shops[name] = shop

    def _broken(self, answer: Message) -> Message:
        """One bit is flipped, or the end is missing; uploads are cut, since any element is an honest one."""
        if isinstance(answer, np.ndarray):
            return answer[:-1]
        at = self._draw(st.integers(0, len(answer) - 1))
        if self._draw(st.booleans()):
            return answer[:at]
        return answer[:at] + bytes([answer[at] ^ (1 << self._draw(st.integers(0, 7)))]) + answer[at + 1 :]


def run_round(schedule: Schedule, index: int, dtype: str) -> np.ndarray | None:
    """One round; None where it ends without a sum."""
    parties = schedule.parties
    coordinator = parties.coordinator
    names = coordinator.participants
    coordinator.open_round(index, parties.context(index), SIZE, np.dtype(dtype))

    context = parties.context(index)

    def masked(name: str) -> np.ndarray:
        parties.shops[name].accept(coordinator.delivery(name))
        return parties.masked(name, index, dtype)

    schedule.exchange(names, masked, lambda name, values: parties.coordinator.add_upload(name, context, values))
    try:
        survivors = coordinator.survivors()
        named = coordinator.survivor_names
        schedule.exchange(named, lambda name: parties.shops[name].sign(survivors), coordinator.add_signature)
        signatures = coordinator.signatures()
        schedule.exchange(named, lambda name: parties.shops[name].reveal(signatures), coordinator.add_shares)
        total = coordinator.total()
    except ProtocolError as error:
        event(f"ended by {type(error).__name__}")
        return None
    expected = np.sum([vector(name, index, dtype) for name in named], axis=0, dtype=dtype)
    assert np.array_equal(total, expected)
    assert len(named) >= parties.parameters.min_shops
    return total


def set_up(schedule: Schedule) -> bool:
    parties = schedule.parties
    coordinator = parties.coordinator
    invite = coordinator.invite(0, 3)
    schedule.exchange(
        parties.parameters.names, lambda name: parties.shops[name].advertise(invite), coordinator.add_advert
    )
    try:
        adverts = coordinator.adverts()
        schedule.exchange(coordinator.advertised, lambda name: parties.shops[name].deal(adverts), coordinator.add_deal)
        coordinator.close_setup()
    except ProtocolError as error:
        event(f"set-up ended by {type(error).__name__}")
        return False
    return True


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.data_too_large, HealthCheck.too_slow])
@given(num_shops=st.integers(3, 7), data=st.data())
def test_any_schedule_gives_the_exact_sum_of_the_survivors_or_nothing(num_shops, data):
    colluders = data.draw(st.integers(0, max(0, num_shops - 4)))
    fewest = (num_shops + colluders) // 2 + 1
    parameters = agreement(num_shops, min_shops=fewest, colluders=colluders)
    schedule = Schedule(Parties.of(parameters), data, FAULTS)
    if not set_up(schedule):
        return
    for index in range(3):
        total = run_round(schedule, index, data.draw(st.sampled_from(DTYPES)))
        event("a sum" if total is not None else "no sum")
        if data.draw(st.booleans()):
            stored = schedule.parties.coordinator.to_bytes()
            schedule.parties.coordinator = CoordinatorSession(parameters, RUN)
            schedule.parties.coordinator.restore(stored)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.data_too_large, HealthCheck.too_slow])
@given(data=st.data())
def test_doubles_crashes_and_any_order_never_cost_the_sum(data):
    schedule = Schedule(Parties.of(agreement(4, min_shops=4)), data, HARMLESS)
    assert set_up(schedule)
    for index in range(3):
        assert run_round(schedule, index, data.draw(st.sampled_from(DTYPES))) is not None


@settings(max_examples=3, deadline=None, suppress_health_check=[HealthCheck.data_too_large, HealthCheck.too_slow])
@given(data=st.data())
def test_random_drop_outs_on_the_ring_give_the_exact_sum_or_nothing(data):
    parties = Parties.of(agreement(36, min_shops=32, colluders=1, rounds_per_setup=1))
    assert parties.parameters.num_neighbours < 35
    parties.set_up()
    names = parties.parameters.names
    few = st.sets(st.sampled_from(names), max_size=5)
    try:
        dropped = data.draw(few)
        total = parties.round(0, dropped=dropped, no_signature=data.draw(few), no_shares=data.draw(few))
    except ProtocolError as error:
        event(f"ended by {type(error).__name__}")
    else:
        assert np.array_equal(total, parties.expected(0, dropped=dropped))
