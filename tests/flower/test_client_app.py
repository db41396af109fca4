import logging
import pickle
from dataclasses import dataclass, replace

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict

from fedrec import errors
from fedrec.errors import TooFewShops, one_line
from fedrec.federation.release import read_release
from fedrec.federation.terms import Terms
from fedrec.flower import _compat, client_app
from fedrec.flower.client_app import NodesInMemory, make_client_app
from fedrec.flower.engines import RunOptions, run_local
from fedrec.flower.exchange import REFUSALS, plan_to_record, release_from_record, unavailable
from fedrec.models.ease import Ease
from fedrec.models.popularity import Popularity
from fedrec.privacy.calibration import calibrate
from fedrec.privacy.spec import Mode, PrivacySpec
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
def test_a_refusal_is_a_code_without_text_and_one_line_in_the_shops_log(federation, nodes, plan, what, caplog):
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
    code = "ConfigError" if what == "bad place" else "BadMessage"
    assert (reply.error.code, reply.error.reason) == (_compat.CLIENT_APP_FAILED, code)
    assert f"could not answer a round: {code}: " in caplog.text
    assert "Traceback" not in caplog.text
    assert len(caplog.text.splitlines()) == 1


@pytest.mark.parametrize("name", [name for name, kind in vars(errors).items() if isinstance(kind, type)])
def test_errors_about_data_leave_as_unavailable_and_the_others_without_a_models_text(federation, name, caplog):
    class Raises(Ease):
        def contributions(self, spec, histories):
            raise getattr(errors, name)("shopper anna-4711 has a bad history")

    model = Raises(federation.model.settings)
    other = type(federation)(model, federation.public, federation.terms, federation.histories)
    nodes = shop_nodes(model, federation.public, federation.terms, federation.histories)
    reply = make_client_app(NodesInMemory(nodes))(ask(plan_to_record(other.coordinator().next_plan())), context())
    assert reply.error.reason == (name if name in REFUSALS else "unavailable")
    assert name not in {"NotFinite", "DataError", "FedrecError"} or reply.error.reason == "unavailable"
    assert b"4711" not in everything(reply)
    assert "4711" in caplog.text


def test_an_error_of_somebody_elses_with_a_known_name_is_unavailable(nodes, plan):
    class BadMessage(Exception):
        """Not ours."""

    reply = unavailable(ask(plan_to_record(plan)), BadMessage("anna-4711"))
    assert reply.error.reason == "unavailable"


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
    assert client_app.app(ask(plan_to_record(plan)), context(0)).error.reason == "ConfigError"


def test_a_refused_promise_says_why_to_the_coordinator_and_ends_the_run_with_it(federation, caplog):
    spec = PrivacySpec(
        epsilon=2.0, delta=1e-300, mode=Mode.LOCAL, public_shoppers=80, max_shoppers=1000, min_shops=4, colluders=1
    )
    model = Popularity()
    schedule = calibrate(model.release_requests(), spec)
    terms = Terms(federation.terms.roster, min_shops=4, run_id="refused", privacy=spec, schedule=schedule)
    seen = []
    options = RunOptions(on_message=lambda *message: seen.append(message))
    with pytest.raises(TooFewShops) as caught:
        run_local(replace(federation, model=model, terms=terms), options)
    said = str(caught.value)
    assert said.startswith("round 0 (popularity): 0 of 5 shops answered, at least 4 are needed")
    assert f"refused or failed: 5, the first, {federation.terms.roster[0]!r}, with RoundRefused: round 0: " in said
    assert said.endswith("than delta 1e-300 has room for")
    assert len(caplog.text.splitlines()) == 5
    assert [(step, shop) for step, _, shop, _ in seen] == [("refusal", shop) for shop in federation.terms.roster]


def test_a_shop_whose_words_are_long_or_unprintable_cannot_fill_the_screen():
    assert one_line("a\n\x1b[31mb\r c") == "a [31mb c"
    assert len(one_line("x" * 10_000)) < 500
