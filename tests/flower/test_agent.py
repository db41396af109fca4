"""A shop's agent: it stays connected, says in one line why it is not, and needs little to wait."""

from __future__ import annotations

import datetime
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from flwr.app import ArrayRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from google.protobuf.message import DecodeError

from fedrec.errors import DataError
from fedrec.flower import _agent_compat, agent
from fedrec.flower.agent import Agent, Traffic, _why
from fedrec.flower.certificates import TlsFiles, create_authority, issue
from fedrec.flower.exchange import bytes_from_record, bytes_to_record, exchange
from fedrec.flower.fleet import Fleet, LinkGrid, fleet_app, serve


def echo_app(work_s: float = 0.0) -> ClientApp:
    app = ClientApp()

    @app.query("echo")
    def echo(message: Message, context: Context) -> Message:
        time.sleep(work_s)
        return Message(bytes_to_record(bytes_from_record(message.content)[::-1]), reply_to=message)

    return app


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> TlsFiles:
    files = TlsFiles.in_folder(tmp_path_factory.mktemp("tls"))
    create_authority(files, "test")
    issue(files, "127.0.0.1")
    return files


def made(tls: TlsFiles, key: bytes, port: int, opened: ClientApp, **more: Any) -> tuple[Agent, list[Traffic]]:
    seen: list[Traffic] = []
    found = Agent(
        more.pop("open_app", lambda: opened),
        shop="ant",
        address=f"127.0.0.1:{port}",
        authority=tls.authority.read_bytes(),
        node_key=key,
        on_change=seen.append,
        **more,
    )
    return found, seen


@contextmanager
def running(one: Agent) -> Iterator[threading.Thread]:
    thread = threading.Thread(target=one.run, daemon=True)
    thread.start()
    try:
        yield thread
    finally:
        one.stop.set()
        thread.join(timeout=30)
        assert not thread.is_alive()


@contextmanager
def coordinator(tls: TlsFiles, key: bytes, port: int = 0) -> Iterator[tuple[LinkGrid, int, Fleet]]:
    fleet = Fleet({"ant": _agent_compat.public_of(key)})
    grid = fleet.grid()
    with serve(fleet_app(fleet), host="127.0.0.1", port=port, certificate=tls.certificate, key=tls.key) as bound:
        yield grid, bound, fleet


def ask(grid: LinkGrid, fleet: Fleet, data: bytes) -> bytes | None:
    fleet.wait_for(1, deadline_s=60)
    grid = fleet.grid()  # in one process with an agent: the coordinator speaks
    message = Message(bytes_to_record(data), fleet.nodes["ant"], "query.echo")
    (reply,) = exchange(grid, {"ant": message}, deadline_s=60, read=bytes_from_record)
    return reply.data


def test_an_agent_answers_and_counts_and_outlives_its_coordinator(tls):
    key = _agent_compat.new_key()
    with coordinator(tls, key) as (grid, port, fleet):
        one, _ = made(tls, key, port, echo_app())
        with running(one):
            assert ask(grid, fleet, b"abc") == b"cba"
            assert one.traffic.connected
            assert one.traffic.answered == {"query.echo": 1}
            assert one.traffic.bytes_up == 3
    one, seen = made(tls, key, port, echo_app())
    with running(one):  # the coordinator is gone
        _wait(lambda: bool(seen) and not one.traffic.connected)
        assert "no connection" in one.traffic.last_error
        with coordinator(tls, key, port) as (grid, _, fleet):
            assert ask(grid, fleet, b"de") == b"ed"
            assert one.traffic.last_error == ""


def test_a_coordinator_that_started_anew_is_connected_to_again(tls):
    key = _agent_compat.new_key()
    with coordinator(tls, key) as (grid, port, fleet):
        one, _ = made(tls, key, port, echo_app())
        with running(one):
            assert ask(grid, fleet, b"ab") == b"ba"
            fleet._seen.clear()  # what a restart forgets
            fleet.state.deactivate_node(fleet.nodes["ant"])
            assert ask(grid, fleet, b"cd") == b"dc"


def test_a_slow_answer_keeps_the_node_alive(tls, monkeypatch):
    monkeypatch.setattr(_agent_compat, "HEARTBEAT_S", 10.0)
    key = _agent_compat.new_key()
    beats: list[float] = []
    beat = _agent_compat.FleetClient.beat
    monkeypatch.setattr(_agent_compat.FleetClient, "beat", lambda self: (beats.append(time.monotonic()), beat(self)))
    monkeypatch.setattr(agent._Beating, "_beat", _quick_beat)
    with coordinator(tls, key) as (grid, port, fleet):
        one, _ = made(tls, key, port, echo_app(work_s=1.5))
        with running(one):
            assert ask(grid, fleet, b"ab") == b"ba"
    assert beats


def _quick_beat(self) -> None:
    while not self._done.wait(0.3):
        self._client.beat()


def test_many_quick_messages_do_not_keep_the_heartbeat_away(tls, monkeypatch):
    beats: list[float] = []
    monkeypatch.setattr(_agent_compat.FleetClient, "beat", lambda self: beats.append(time.monotonic()))
    monkeypatch.setattr(agent, "BUSY_POLL_S", 0.01)
    key = _agent_compat.new_key()
    with coordinator(tls, key) as (grid, port, fleet):
        one, _ = made(tls, key, port, echo_app())
        with running(one):
            fleet.wait_for(1, deadline_s=60)
            monkeypatch.setattr(_agent_compat, "HEARTBEAT_S", 1.0)
            give_up_at = time.monotonic() + 60
            while not beats and time.monotonic() < give_up_at:
                assert ask(grid, fleet, b"ab") == b"ba"
    assert beats


def test_a_stop_waits_for_the_answer_under_way_and_says_goodbye(tls):
    key = _agent_compat.new_key()
    with coordinator(tls, key) as (grid, port, fleet):
        one, _ = made(tls, key, port, echo_app(work_s=1.0))
        with running(one) as thread:
            fleet.wait_for(1, deadline_s=60)
            message = Message(bytes_to_record(b"ab"), fleet.nodes["ant"], "query.echo")
            replies = exchange(grid, {"ant": message}, deadline_s=60, read=bytes_from_record)
            threading.Timer(0.5, one.stop.set).start()
            assert [reply.data for reply in replies] in ([b"ba"], [None])
            thread.join(timeout=30)
            assert fleet.online() == ()


def test_a_message_of_an_unknown_kind_is_an_error_and_the_agent_goes_on(tls):
    key = _agent_compat.new_key()
    with coordinator(tls, key) as (grid, port, fleet):
        one, _ = made(tls, key, port, echo_app())
        with running(one):
            fleet.wait_for(1, deadline_s=60)
            strange = Message(RecordDict({"x": ArrayRecord()}), fleet.nodes["ant"], "query.hello")
            (reply,) = exchange(grid, {"ant": strange}, deadline_s=60, read=bytes_from_record)
            assert (reply.data, reply.refusal) == (None, "unavailable")
            assert ask(grid, fleet, b"ab") == b"ba"


def test_kinds_that_a_coordinator_makes_up_fill_neither_memory_nor_the_status_file(tls):
    one, _ = made(tls, _agent_compat.new_key(), 1, echo_app())
    for number in range(100):
        one._count(f"query.{number}" + "x" * 1_000_000, is_refused=True)
    assert len(one.traffic.answered) <= 21
    assert sum(map(len, one.traffic.answered)) < 20_000
    assert one.traffic.refused == sum(one.traffic.answered.values()) == 100


def refused(status: int, *, date: datetime.datetime | None = None, json: object = None) -> httpx.HTTPStatusError:
    headers = {} if date is None else {"date": date.strftime("%a, %d %b %Y %H:%M:%S GMT")}
    request = httpx.Request("POST", "https://c.example")
    response = httpx.Response(status, headers=headers, json=json, request=request)
    return httpx.HTTPStatusError("", request=request, response=response)


@pytest.mark.parametrize(("minutes", "words"), [(60, "behind"), (-60, "ahead of")])
def test_a_wrong_clock_is_named(minutes, words):
    there = datetime.datetime.now(datetime.UTC) + datetime.timedelta(minutes=minutes)
    found = _why(refused(401, date=there, json={"detail": "no enrolled key"}))
    assert f" s {words} the coordinator's" in found
    assert found.startswith("this machine's clock is 3")


def test_a_clock_that_is_right_is_not_blamed():
    now = datetime.datetime.now(datetime.UTC)
    assert _why(refused(401, date=now, json={"detail": "no enrolled key"})) == (
        "the coordinator answers 401: no enrolled key"
    )
    assert _why(refused(409, json={"detail": "another agent"})) == "the coordinator answers 409: another agent"
    assert _why(refused(502)) == "the coordinator answers 502: Bad Gateway"
    assert _why(httpx.ConnectError("refused\nhere")) == "no connection: refused here"


@pytest.mark.parametrize("body", [[], "x", {"detail": "gone\n2026-11-21 info    all is well\x1b[2J"}, 7, None])
def test_a_coordinators_words_are_one_line_whatever_they_are(body):
    found = _why(refused(409, json=body))
    assert found.startswith("the coordinator answers 409: ")
    assert found.isprintable()


@pytest.mark.parametrize("spoil", ["no protobuf", "no tree", "no message"])
def test_an_agent_outlives_a_coordinator_that_sends_anything(tls, monkeypatch, spoil):
    key = _agent_compat.new_key()
    pull = _agent_compat.FleetHttpClient.PullMessages

    def spoiled(self, request):
        found = pull(self, request)
        if spoil == "no protobuf":
            raise DecodeError("x")
        if spoil == "no tree":
            del found.message_object_trees[:]
        for message, tree in zip(found.messages_list, found.message_object_trees, strict=False):
            tree.CopyFrom(tree.children[0])
            message.metadata.message_id = tree.object_id
        return found

    monkeypatch.setattr(_agent_compat.FleetHttpClient, "PullMessages", spoiled)
    with coordinator(tls, key) as (_, port, fleet):
        one, _ = made(tls, key, port, echo_app())
        with running(one) as thread:
            fleet.wait_for(1, deadline_s=60)
            grid = fleet.grid()
            grid.push_messages([Message(bytes_to_record(b"ab"), fleet.nodes["ant"], "query.echo")])
            _wait(lambda: "sent what is no message" in one.traffic.last_error)
            monkeypatch.setattr(_agent_compat.FleetHttpClient, "PullMessages", pull)
            _wait(lambda: one.traffic.answered == {"query.echo": 1})
            assert thread.is_alive()


def test_an_agent_whose_clock_is_wrong_says_so(tls, monkeypatch):
    from flwr.supernode import node_auth_http_interceptor

    late = datetime.datetime.now(datetime.UTC) + datetime.timedelta(hours=2)
    clock = type("Clock", (datetime.datetime,), {"now": classmethod(lambda cls, tz=None: late)})
    monkeypatch.setattr(node_auth_http_interceptor, "now", lambda: late)
    monkeypatch.setattr(agent, "datetime", SimpleNamespace(datetime=clock, UTC=datetime.UTC))
    key = _agent_compat.new_key()
    with coordinator(tls, key) as (_, port, fleet):
        one, seen = made(tls, key, port, echo_app())
        with running(one):
            _wait(lambda: bool(seen))
        assert fleet.online() == ()
    assert "ahead of the coordinator's" in one.traffic.last_error


def test_the_app_is_opened_by_the_first_message_and_kept_while_a_run_takes_breaks(tls):
    key, opened = _agent_compat.new_key(), []

    def open_app() -> ClientApp:
        opened.append(time.monotonic())
        if len(opened) == 1:
            raise DataError("the events\nare gone")
        return echo_app()

    with coordinator(tls, key) as (grid, port, fleet):
        one, _ = made(tls, key, port, echo_app(), open_app=open_app, idle_after_s=0.2)
        with running(one) as thread:
            fleet.wait_for(1, deadline_s=60)
            time.sleep(0.5)
            assert not opened
            assert ask(grid, fleet, b"ab") is None  # the events are there again at the next
            assert ask(grid, fleet, b"ab") == b"ba"
            time.sleep(0.5)
            assert thread.is_alive()
            assert ask(grid, fleet, b"cd") == b"dc"
            assert len(opened) == 2
    thread.join(timeout=30)
    assert not thread.is_alive()


@pytest.mark.parametrize("is_there", [True, False], ids=["connected", "alone"])
def test_an_open_app_that_nobody_uses_ends_the_agent_so_that_it_can_begin_anew(tls, is_there):
    key, before = _agent_compat.new_key(), Traffic(answered={"query.echo": 7})
    with coordinator(tls, key) as (_, port, fleet):
        address = port if is_there else 1
        one, _ = made(tls, key, address, echo_app(), app=echo_app(), idle_after_s=1.0, traffic=before)
        thread = threading.Thread(target=one.run, daemon=True)
        thread.start()
        thread.join(timeout=60)
        assert not thread.is_alive()
        assert not one.stop.is_set()
        assert one.traffic.answered == {"query.echo": 7}
        assert fleet.online() == ()  # it said goodbye: the new one is not taken for a second agent


def test_an_agent_that_waits_loads_nothing_that_runs_need():
    code = (
        "import sys, fedrec.cli.shop, fedrec.flower.agent, fedrec.flower.observe, fedrec.shop.status\n"
        "heavy = ('pandas', 'pyarrow', 'scipy', 'sqlalchemy', 'torch', 'uvicorn', 'fedrec.data', 'fedrec.models')\n"
        "print([name for name in heavy if name in sys.modules])\n"
    )
    root = Path(__file__).parents[2]
    said = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert said.stdout == "[]\n"


def test_an_agent_with_a_linear_model_imports_neither_torch_nor_opacus():
    code = (
        "import sys, fedrec.cli.shop, fedrec.role_config, fedrec.shop.enrol, fedrec.shop.member, fedrec.shop.status\n"
        "import fedrec.flower.agent, fedrec.flower.client_app, fedrec.flower.observe\n"
        "from fedrec.models import load_model\n"
        "load_model('fedrec.models.ease:Ease')\n"
        "print([name for name in ('torch', 'opacus', 'ray', 'matplotlib') if name in sys.modules])\n"
    )
    root = Path(__file__).parents[2]
    said = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert said.stdout == "[]\n"


def _wait(is_true, *, deadline_s: float = 60.0) -> None:
    give_up_at = time.monotonic() + deadline_s
    while not is_true():
        assert time.monotonic() < give_up_at
        time.sleep(0.02)
