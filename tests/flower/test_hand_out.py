"""The finished model reaches every shop, those that come back late among them."""

import threading
import time
from pathlib import Path

import numpy as np
from flwr.app import Message

from fedrec.flower import _agent_compat
from fedrec.flower.agent import INSTANCE_HEADER
from fedrec.flower.certificates import TlsFiles, create_authority, issue
from fedrec.flower.deployment import hand_out
from fedrec.flower.exchange import MODEL_MESSAGE, bytes_to_record, model_from_record, model_to_record
from fedrec.flower.fleet import Fleet, fleet_app, serve
from fedrec.role_config import RoundsSection

STATE = {"x": np.arange(6, dtype=np.float32)}


def take_model(client: _agent_compat.FleetClient, taken: dict[str, np.ndarray], shop: str, *, after_s: float) -> None:
    """An agent that connects late, takes one message and leaves."""
    time.sleep(after_s)
    client.connect()
    while (message := client.receive()) is None:
        time.sleep(0.02)
    assert message.metadata.message_type == MODEL_MESSAGE
    taken[shop] = model_from_record(message.content)[1]["x"]
    client.send(Message(bytes_to_record(b""), reply_to=message))
    client.confirm(message)
    client.disconnect()
    client.close()


def hand_to(folder: Path, late_s: dict[str, float], *, patience_s: float) -> tuple[set[str], dict[str, np.ndarray]]:
    """Shops left without, and what the others took; `late_s`: by shop, when it connects."""
    tls = TlsFiles.in_folder(folder)
    create_authority(tls, "test")
    issue(tls, "127.0.0.1")
    keys = {shop: _agent_compat.new_key() for shop in ("ant", "bee")}
    fleet = Fleet({shop: _agent_compat.public_of(key) for shop, key in keys.items()})
    taken: dict[str, np.ndarray] = {}
    rounds = RoundsSection(deadline_s=30.0, patience_s=patience_s)
    with serve(fleet_app(fleet), host="127.0.0.1", port=0, certificate=tls.certificate, key=tls.key) as port:
        threads = []
        for shop, after_s in late_s.items():
            headers = {INSTANCE_HEADER: shop}
            client = _agent_compat.FleetClient(f"127.0.0.1:{port}", tls.authority.read_bytes(), keys[shop], headers)
            about = (client, taken, shop)
            threads.append(threading.Thread(target=take_model, args=about, kwargs={"after_s": after_s}, daemon=True))
            threads[-1].start()
        left = hand_out(fleet, "run-1", STATE, rounds, threading.Event())
        for thread in threads:
            thread.join(timeout=30)
    return left, taken


def test_a_shop_that_comes_back_late_gets_the_model_too(tmp_path: Path) -> None:
    left, taken = hand_to(tmp_path, {"ant": 0.0, "bee": 3.0}, patience_s=120.0)
    assert left == set()
    assert sorted(taken) == ["ant", "bee"]
    assert all(np.array_equal(array, STATE["x"]) for array in taken.values())


def test_a_shop_that_stays_away_is_named_when_patience_is_over(tmp_path: Path) -> None:
    left, taken = hand_to(tmp_path, {"ant": 0.0}, patience_s=5.0)
    assert (left, sorted(taken)) == ({"bee"}, ["ant"])


def test_an_answer_counts_though_its_agent_has_left_by_then(tmp_path: Path) -> None:
    tls = TlsFiles.in_folder(tmp_path)
    create_authority(tls, "test")
    issue(tls, "127.0.0.1")
    key = _agent_compat.new_key()
    fleet = Fleet({"ant": _agent_compat.public_of(key)})
    grid = fleet.grid()
    message = Message(model_to_record("run-1", STATE), fleet.nodes["ant"], MODEL_MESSAGE)
    with serve(fleet_app(fleet), host="127.0.0.1", port=0, certificate=tls.certificate, key=tls.key) as port:
        authority, headers = tls.authority.read_bytes(), {INSTANCE_HEADER: "ant"}
        client = _agent_compat.FleetClient(f"127.0.0.1:{port}", authority, key, headers)
        client.connect()  # a node that is away when a message is left answers "unavailable" at once
        names = list(grid.push_messages([message]))
        take_model(client, {}, "ant", after_s=0.0)
        assert fleet.online() == ()
        replies = list(grid.pull_messages(names))
    assert [reply.has_error() for reply in replies] == [False]
