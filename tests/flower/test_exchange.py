import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, RecordDict
from flwr.clientapp import ClientApp

from fedrec.errors import BadMessage, ProtocolError
from fedrec.flower import _compat
from fedrec.flower.client_app import NodesInMemory, make_client_app
from fedrec.flower.exchange import (
    exchange,
    find_nodes,
    plan_from_record,
    plan_to_record,
    release_from_record,
    round_messages,
    window_for,
)
from fedrec.flower.local_grid import Faults, LocalGrid
from fedrec.shop.node import shop_nodes


class SlowGrid(LocalGrid):
    """Answers in an order of its own: shop ``first_places`` are ready only after ``looks`` looks for replies."""

    def __init__(self, *args, slow=(), looks=3, **kwargs):
        super().__init__(*args, **kwargs)
        self.slow = {self.nodes[shop] for shop in slow}
        self.looks_left = looks
        self.asked = []

    def pull_messages(self, message_ids):
        ids = list(message_ids)
        self.asked.append(len(ids))
        self.looks_left -= 1
        if self.looks_left >= 0:
            ids = [name for name in ids if self._sent[name].message.metadata.dst_node_id not in self.slow]
        yield from super().pull_messages(reversed(ids))


@pytest.fixture
def plan(federation):
    return federation.coordinator().next_plan()


@pytest.fixture
def app(federation):
    nodes = shop_nodes(federation.model, federation.public, federation.terms, federation.histories)
    return make_client_app(NodesInMemory(nodes))


def test_a_plan_travels_through_flowers_records(plan):
    read = plan_from_record(plan_to_record(plan))
    assert read.digest == plan.digest


def test_every_message_of_a_round_shares_the_same_arrays(federation, plan):
    _compat.set_identity(1)
    messages = round_messages(plan, {"ant": 2, "bee": 3})
    first, second = (message.content["inputs"] for message in messages.values())
    assert [a is b for a, b in zip(first.values(), second.values(), strict=True)] == [True] * len(first)


def test_every_shop_is_heard_whatever_the_order(federation, app, plan):
    grid = SlowGrid(app, federation.terms.roster, slow=("ant", "dog"))
    replies = list(exchange(grid, round_messages(plan, grid.nodes)))
    assert [reply.shop for reply in replies] == ["elk", "cat", "bee", "dog", "ant"]
    assert all(reply.data for reply in replies)


def test_no_more_replies_wait_than_the_window_allows(federation, app, plan):
    grid = SlowGrid(app, federation.terms.roster, slow=("ant",))
    heard = [reply.shop for reply in exchange(grid, round_messages(plan, grid.nodes), window=2)]
    assert heard == ["bee", "ant", "dog", "cat", "elk"]
    assert max(grid.asked) == 2


def test_shops_without_an_answer_by_the_deadline_are_unavailable(federation, app, plan):
    grid = SlowGrid(app, federation.terms.roster, slow=("bee",), looks=10**9)
    started = time.monotonic()
    replies = list(exchange(grid, round_messages(plan, grid.nodes), deadline_s=0.05))
    assert time.monotonic() - started < 10
    assert {reply.shop for reply in replies if reply.data is None} == {"bee"}
    assert len(replies) == 5


def test_waiting_can_be_stopped_from_outside(federation, app, plan):
    grid = SlowGrid(app, federation.terms.roster, slow=("bee",), looks=10**9)
    stop = threading.Event()
    replies = exchange(grid, round_messages(plan, grid.nodes), stop=stop)
    heard = [next(replies) for _ in range(4)]
    assert "bee" not in {reply.shop for reply in heard}
    stop.set()
    with pytest.raises(ProtocolError, match="stopped"):
        next(replies)


def test_at_the_deadline_shops_outside_the_window_are_heard_once_more(federation, app, plan):
    grid = SlowGrid(app, federation.terms.roster, slow=("ant",), looks=10**9)
    replies = exchange(grid, round_messages(plan, grid.nodes), deadline_s=0.05, window=1)
    assert [reply.shop for reply in replies if reply.data is None] == ["ant"]


def test_an_error_of_the_grid_is_that_of_the_shop_it_stands_for(federation, app, plan):
    grid = LocalGrid(app, federation.terms.roster, faults=Faults(drop=0.5, seed=1))
    replies = list(exchange(grid, round_messages(plan, grid.nodes)))
    assert [reply.shop for reply in replies] == list(federation.terms.roster)
    assert 0 < sum(reply.data is None for reply in replies) < 5


def test_a_reply_that_is_no_release_counts_as_unavailable(federation, plan):
    def answer(message, context):
        return Message(RecordDict({"metrics": ConfigRecord({"loss": 0.5})}), reply_to=message)

    app = ClientApp()
    app.train("round")(answer)
    grid = LocalGrid(app, federation.terms.roster)
    assert all(reply.data is None for reply in exchange(grid, round_messages(plan, grid.nodes)))


@pytest.mark.parametrize(
    "content",
    [
        RecordDict(),
        RecordDict({"release": ConfigRecord()}),
        RecordDict({"release": ArrayRecord()}),
        RecordDict({"release": ArrayRecord({"release": Array(np.ones(2))}), "more": ConfigRecord()}),
        RecordDict({"release": ArrayRecord({"release": Array(np.ones(2)), "more": Array(np.ones(2))})}),
    ],
    ids=range(5),
)
def test_content_beside_a_release_is_refused(content):
    with pytest.raises(BadMessage):
        release_from_record(content)


@pytest.mark.parametrize(
    "array",
    [
        Array("float64", (2,), "fedrec.raw", b"1234567"),
        Array("float64", (3,), "fedrec.raw", bytes(16)),
        Array("object", (1,), "fedrec.raw", bytes(8)),
        Array(np.ones(2)),
    ],
    ids=range(4),
)
def test_input_arrays_that_are_not_raw_buffers_of_their_shape_are_refused(plan, array):
    content = plan_to_record(plan)
    content["inputs"]["x"] = array
    with pytest.raises(BadMessage):
        plan_from_record(content)


def test_nodes_are_found_by_the_place_they_say(federation, app):
    grid = LocalGrid(app, federation.terms.roster)
    assert find_nodes(grid, federation.terms.roster) == grid.nodes


def test_a_node_beyond_the_roster_does_not_stand_for_a_missing_shop(federation, app):
    class ArrivingGrid(LocalGrid):
        """Nodes come one after another, the last place first; the roster does not know that one."""

        num_here = 0

        def get_node_ids(self):
            self.num_here += 1
            return list(reversed(super().get_node_ids()))[: self.num_here]

    grid = ArrivingGrid(app, (*federation.terms.roster, "stranger"))
    found = find_nodes(grid, federation.terms.roster, deadline_s=5)
    assert found == {shop: grid.nodes[shop] for shop in federation.terms.roster}


def test_nodes_that_never_connect_are_named(federation, app):
    grid = LocalGrid(app, federation.terms.roster[:3])
    with pytest.raises(ProtocolError, match="dog"):
        find_nodes(grid, federation.terms.roster, deadline_s=0.2)


def test_a_node_that_fails_to_say_hello_is_missing(federation):
    app = ClientApp()
    app.query("hello")(lambda message, context: Message(Error(2), reply_to=message))
    with pytest.raises(ProtocolError, match="5 of 5"):
        find_nodes(LocalGrid(app, federation.terms.roster), federation.terms.roster, deadline_s=0.2)


def test_big_vectors_wait_in_small_numbers(plan):
    big = SimpleNamespace(spec=SimpleNamespace(layout=SimpleNamespace(size=13_000_000)))
    assert window_for(big) == 5
    assert window_for(plan) > 1000
