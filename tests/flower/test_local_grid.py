import os
import threading
import time

import pytest
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.clientapp import ClientApp

from fedrec.errors import ConfigError, ProtocolError
from fedrec.flower.local_grid import Faults, LocalGrid

ROSTER = ("ant", "bee", "cat")


class Counter:
    """Counts calls a node in the node's own state, and empties the message it got."""

    def __init__(self):
        self.computed = []

    def __call__(self, message, context):
        place = context.node_config["partition-id"]
        if place == 1 and "fail" in message.content["order"]:
            raise ValueError("shopper 4711 bought a secret")
        self.computed.append(place)
        seen = context.state["seen"]["n"] if "seen" in context.state else 0
        context.state["seen"] = ConfigRecord({"n": seen + 1})
        message.content.pop("order")
        return Message(RecordDict({"count": ConfigRecord({"n": seen + 1})}), reply_to=message)


def make_grid(**options):
    app, counter = ClientApp(), Counter()
    app.train()(counter)
    return LocalGrid(app, ROSTER, **options), counter


def orders(grid, **order):
    content = RecordDict({"order": ConfigRecord(order), "inputs": ArrayRecord()})
    return [Message(content, node, "train", group_id="0") for node in grid.get_node_ids()]


def test_a_shop_computes_when_its_reply_is_pulled():
    grid, counter = make_grid()
    pulled = grid.pull_messages(grid.push_messages(orders(grid)))
    assert counter.computed == []
    next(pulled)
    assert counter.computed == [0]
    assert len(list(pulled)) == 2
    assert counter.computed == [0, 1, 2]


def test_clients_that_empty_their_message_do_not_disturb_each_other():
    grid, _ = make_grid()
    messages = orders(grid)
    replies = grid.send_and_receive(messages)
    assert [reply.has_content() for reply in replies] == [True] * 3
    assert "order" in messages[0].content


def test_each_node_keeps_a_state_of_its_own():
    grid, _ = make_grid()
    grid.send_and_receive(orders(grid))
    grid.send_and_receive(orders(grid)[:1])
    counts = [reply.content["count"]["n"] for reply in grid.send_and_receive(orders(grid))]
    assert counts == [3, 2, 2]


def test_an_exception_becomes_an_error_without_its_text():
    grid, _ = make_grid()
    replies = grid.send_and_receive(orders(grid, fail=True))
    assert [reply.has_error() for reply in replies] == [False, True, False]
    assert "4711" not in repr(replies)


def test_a_reply_is_handed_out_once():
    grid, counter = make_grid()
    ids = grid.push_messages(orders(grid))
    assert len(list(grid.pull_messages(ids))) == 3
    assert list(grid.pull_messages(ids)) == []
    assert counter.computed == [0, 1, 2]


def test_a_dropped_shop_is_reported_by_the_grid_itself():
    grid, counter = make_grid(faults=Faults(drop=1.0))
    messages = orders(grid)
    ids = list(grid.push_messages(messages))
    replies = list(grid.pull_messages(ids))
    assert [reply.metadata.src_node_id for reply in replies] == [1, 1, 1]
    assert [reply.metadata.reply_to_message_id for reply in replies] == ids
    assert counter.computed == []


def test_a_delayed_reply_is_not_there_yet():
    grid, _ = make_grid(faults=Faults(delay_s=60.0, seed=2))
    assert list(grid.pull_messages(grid.push_messages(orders(grid)))) == []


def test_duplicates_arrive_twice():
    grid, counter = make_grid(faults=Faults(duplicate=1.0))
    replies = list(grid.pull_messages(grid.push_messages(orders(grid))))
    assert len(replies) == 6
    assert counter.computed == [0, 1, 2]


@pytest.mark.parametrize(
    "change", [{"drop": -0.1}, {"error": 1.1}, {"duplicate": float("nan")}, {"delay_s": -1}, {"delay_s": float("inf")}]
)
def test_impossible_faults_are_refused(change):
    with pytest.raises(ConfigError):
        Faults(**change)


def test_a_negative_number_of_workers_is_refused():
    with pytest.raises(ConfigError):
        LocalGrid(ClientApp(), ROSTER, workers=-1)


class DiesAfterAnswer:
    def __call__(self, message, context):
        threading.Timer(1.0, os._exit, [1]).start()  # the answer is out long before
        return Message(RecordDict(), reply_to=message)


def test_a_worker_that_died_between_two_looks_is_an_error_of_the_protocol():
    app = ClientApp()
    app.train()(DiesAfterAnswer())
    with LocalGrid(app, ROSTER, workers=1) as grid:
        first, second, _ = grid.push_messages(orders(grid))
        while not list(grid.pull_messages([first])):
            pass
        while not grid._pool._broken:
            time.sleep(0.01)
        with pytest.raises(ProtocolError, match="worker process died"):
            list(grid.pull_messages([second]))
