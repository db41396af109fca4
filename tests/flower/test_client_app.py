import logging
import pickle
from dataclasses import dataclass

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict

from fedrec.federation.release import read_release
from fedrec.flower import _compat, client_app
from fedrec.flower.client_app import NodesInMemory, make_client_app
from fedrec.flower.exchange import plan_to_record, release_from_record
from fedrec.models.ease import Ease
from fedrec.shop.node import shop_nodes


@pytest.fixture
def nodes(federation):
    return shop_nodes(federation.model, federation.public, federation.terms, federation.histories)


@pytest.fixture
def plan(federation):
    return federation.coordinator().next_plan()


def context(place: object = 2, **run_config):
    return Context(1, 5, {"partition-id": place, "num-partitions": 5}, RecordDict(), run_config)


def popularity_by_hand(histories):
    """Each shopper's row divided by the square root of its length (shopper_exponent 0.5), added up."""
    rows = histories.toarray().astype(float)
    return (rows / np.sqrt(np.maximum(rows.sum(axis=1, keepdims=True), 1))).sum(axis=0)


def ask(content, kind="train.round"):
    _compat.set_identity(1)
    message = Message(content, 5, kind, group_id="0")
    _compat.set_message_id(message, "m0")
    return message


def test_a_plan_is_answered_with_a_release_and_nothing_else(federation, nodes, plan):
    reply = make_client_app(NodesInMemory(nodes))(ask(plan_to_record(plan)), context(2))
    assert list(reply.content) == ["release"]
    assert list(reply.content["release"]) == ["release"]
    values = read_release(release_from_record(reply.content), plan).values
    np.testing.assert_allclose(values, popularity_by_hand(federation.histories[2]), rtol=1e-12)


@dataclass(frozen=True)
class Leaky(Ease):
    """Fails on the third shop with a text that holds a shopper's id."""

    def contributions(self, spec, histories):
        raise RuntimeError("shopper anna-4711 has a bad history")


def everything(message):
    parts = [repr(message), repr(vars(message.metadata))]
    if message.has_error():
        parts.append(f"{message.error.code} {message.error.reason}")
    else:
        parts += [repr(dict(record)) for record in message.content.values()]
    return " ".join(parts).encode() + pickle.dumps(message)


def test_no_text_of_an_exception_leaves_the_shop(federation, caplog):
    model = Leaky(federation.model.settings)
    nodes = shop_nodes(model, federation.public, federation.terms, federation.histories)
    plan = type(federation)(model, federation.public, federation.terms, federation.histories).coordinator().next_plan()
    with caplog.at_level(logging.CRITICAL, logger="fedrec.shop"):
        reply = make_client_app(NodesInMemory(nodes))(ask(plan_to_record(plan)), context())
    assert reply.error.reason == "unavailable"
    sent = everything(reply)
    for secret in (b"anna", b"4711", b"RuntimeError", b"history", b"Traceback"):
        assert secret not in sent


def test_the_reason_stays_in_the_shops_own_log(federation, nodes, plan, caplog):
    app = make_client_app(NodesInMemory(nodes[:2]))
    reply = app(ask(plan_to_record(plan)), context(2))
    assert reply.error.reason == "unavailable"
    assert "IndexError" in caplog.text


@pytest.mark.parametrize("what", ["empty", "other model", "tampered", "no plan", "bad place", "nan"])
def test_whatever_goes_wrong_the_answer_is_the_same(federation, nodes, plan, what):
    content, place = plan_to_record(plan), 2
    if what == "empty":
        content = RecordDict()
    elif what == "other model":
        other = type(federation)(Ease(), federation.public, federation.terms, federation.histories)
        content = plan_to_record(other.coordinator().next_plan())
    elif what == "tampered":
        content["plan"]["header"] = plan.header.replace(b'"round":0', b'"round": 0')
    elif what == "no plan":
        content = RecordDict({"plan": ArrayRecord(), "inputs": ConfigRecord()})
    elif what == "bad place":
        place = "two"
    else:
        content["inputs"]["extra"] = Array("float64", (1,), "fedrec.raw", np.array([np.nan]).tobytes())
    reply = make_client_app(NodesInMemory(nodes))(ask(content), context(place))
    assert (reply.error.code, reply.error.reason) == (_compat.CLIENT_APP_FAILED, "unavailable")


def test_a_plan_that_was_read_once_is_checked_again_when_its_bytes_differ(nodes, plan):
    app = make_client_app(NodesInMemory(nodes))
    content = plan_to_record(plan)
    assert app(ask(content), context(0)).has_content()
    content["plan"]["header"] = plan.header[:-1] + b" "
    assert app(ask(content), context(0)).has_error()
    content["plan"]["header"] = plan.header
    assert app(ask(content), context(0)).has_content()


def test_a_node_says_its_place_in_the_roster_and_nothing_else(nodes):
    reply = make_client_app(NodesInMemory(nodes))(ask(RecordDict(), "query.hello"), context(3))
    assert {key: dict(record) for key, record in reply.content.items()} == {"place": {"partition-id": 3}}


def test_an_app_travels_to_other_processes(nodes, plan):
    app = pickle.loads(pickle.dumps(make_client_app(NodesInMemory(nodes))))
    assert app(ask(plan_to_record(plan)), context(0)).has_content()


def test_the_installed_app_opens_its_shop_from_the_run_directory(federation, plan, tmp_path):
    federation.write_files(tmp_path)
    reply = client_app.app(ask(plan_to_record(plan)), context(4, **{"run-dir": str(tmp_path)}))
    values = read_release(release_from_record(reply.content), plan).values
    np.testing.assert_allclose(values, popularity_by_hand(federation.histories[4]), rtol=1e-12)


def test_the_installed_app_without_a_run_directory_is_unavailable(plan):
    assert client_app.app(ask(plan_to_record(plan)), context(0)).error.reason == "unavailable"
