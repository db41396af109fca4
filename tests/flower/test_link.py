"""The link between coordinator and agents over TLS: who may speak, for whom, and what is left behind."""

from __future__ import annotations

import base64
import datetime
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import httpx
import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Message, RecordDict
from flwr.common.constant import TIMESTAMP_HEADER
from flwr.common.serde import message_to_proto
from flwr.proto.fleet_pb2 import ActivateNodeRequest, PullMessagesRequest, PushMessagesRequest, PushMessagesResponse
from flwr.proto.message_pb2 import PushObjectRequest
from flwr.proto.node_pb2 import Node
from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER, FLEET_HTTP_SIGNATURE_HEADER
from flwr.supercore.inflatable.inflatable_object import get_object_tree
from flwr.supercore.primitives.asymmetric import bytes_to_private_key, sign_message
from flwr.supercore.protobuf.constants import PROTOBUF_MEDIA_TYPE

from fedrec.errors import ProtocolError
from fedrec.flower import _agent_compat, _compat, _link_compat
from fedrec.flower.agent import INSTANCE_HEADER
from fedrec.flower.certificates import TlsFiles, create_authority, issue
from fedrec.flower.exchange import exchange
from fedrec.flower.fleet import MOST_BODY_BYTES, Fleet, LinkGrid, fleet_app, serve

SHOPS = ("ant", "bee")
FLEET_ROUTES = (
    *("activate-node", "deactivate-node", "send-node-heartbeat", "pull-messages", "push-messages", "push-object"),
    *("pull-object", "confirm-message-received", "register-node", "unregister-node", "get-run", "get-fab"),
)
PATHS = (
    *(f"/v1/fleet/{route}" for route in FLEET_ROUTES),
    *("/", "/docs", "/redoc", "/openapi.json", "/health", "/metrics", "/v1/control/start-run", "/v1/control/list-runs"),
    *("/v1/runtime/pull-task", "/v1/runtime/push-messages", "/v1/fleet/", "/v1/fleet/../control/stop-run", "/x%00y"),
)


@dataclass(frozen=True)
class Link:
    """A running coordinator's end, and the keys of its shops."""

    fleet: Fleet
    grid: LinkGrid
    port: int
    tls: TlsFiles
    keys: dict[str, bytes]
    opened: list[_agent_compat.FleetClient] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    def client(self, shop: str, instance: str = "first") -> _agent_compat.FleetClient:
        authority, headers = self.tls.authority.read_bytes(), {INSTANCE_HEADER: instance}
        client = _agent_compat.FleetClient(f"127.0.0.1:{self.port}", authority, self.keys[shop], headers)
        self.opened.append(client)
        return client

    def http(self) -> httpx.Client:
        import ssl

        return httpx.Client(base_url=self.url, verify=ssl.create_default_context(cafile=str(self.tls.authority)))

    def ask(self, size: int = 8, shops: tuple[str, ...] = SHOPS) -> dict[str, Message]:
        """One message a shop, not sent yet."""
        return {shop: Message(array_of(size), self.fleet.nodes[shop], "train.round", group_id="0") for shop in shops}

    def is_empty(self) -> bool:
        state = self.fleet.state
        stores = (state.message_ins_store, state.message_res_store, state.message_ins_id_to_message_res_id)
        left = [len(one) for one in (*stores, state.object_store, state._object_push_sessions, self.fleet.replies)]
        return left == [0] * 6


def array_of(size: int) -> RecordDict:
    record = ArrayRecord()
    record["x"] = Array("uint8", (size,), "raw", np.random.default_rng(size).bytes(size))
    return RecordDict({"x": record})


def data_of(content: RecordDict) -> bytes:
    return content["x"]["x"].data


def answer_to(message: Message, data: bytes = b"answer") -> Message:
    record = ArrayRecord()
    record["x"] = Array("uint8", (len(data),), "raw", data)
    return Message(RecordDict({"x": record}), reply_to=message)


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> TlsFiles:
    files = TlsFiles.in_folder(tmp_path_factory.mktemp("tls"))
    create_authority(files, "test")
    issue(files, "127.0.0.1")
    return files


@pytest.fixture
def link(tls: TlsFiles) -> Iterator[Link]:
    keys = {shop: _agent_compat.new_key() for shop in SHOPS}
    fleet = Fleet({shop: _agent_compat.public_of(key) for shop, key in keys.items()})
    grid = fleet.grid()
    with serve(fleet_app(fleet), host="127.0.0.1", port=0, certificate=tls.certificate, key=tls.key) as port:
        yield (found := Link(fleet, grid, port, tls, keys))
        for client in found.opened:
            client.close()


@contextmanager
def agents(link: Link, answer: Callable[[Message], Message] = answer_to) -> Iterator[None]:
    """An agent a shop, answering until the block ends."""
    done = threading.Event()

    def run(client: _agent_compat.FleetClient) -> None:
        while not done.is_set():
            if (message := client.receive()) is None:
                time.sleep(0.02)
                continue
            client.send(answer(message))
            client.confirm(message)

    clients = [link.client(shop) for shop in SHOPS]
    threads = [threading.Thread(target=run, args=(client,), daemon=True) for client in clients]
    for client, thread in zip(clients, threads, strict=True):
        client.connect()
        thread.start()
    try:
        yield
    finally:
        done.set()
        for thread in threads:
            thread.join(timeout=10)


def signed(key: bytes, *, at: datetime.datetime | None = None, signer: bytes | None = None) -> dict[str, str]:
    """The headers of a node's request."""
    time_ = (at or datetime.datetime.now(datetime.UTC)).isoformat()
    signature = sign_message(bytes_to_private_key(signer or key), time_.encode())
    return {
        FLEET_HTTP_PUBLIC_KEY_HEADER: base64.b64encode(_agent_compat.public_of(key)).decode(),
        FLEET_HTTP_SIGNATURE_HEADER: base64.b64encode(signature).decode(),
        TIMESTAMP_HEADER: time_,
        INSTANCE_HEADER: "first",
    }


def post(link: Link, route: str, request: object, headers: dict[str, str]) -> httpx.Response:
    kinds = {"content-type": PROTOBUF_MEDIA_TYPE, "accept": PROTOBUF_MEDIA_TYPE}
    with link.http() as http:
        return http.post(f"/v1/fleet/{route}", content=request.SerializeToString(), headers={**kinds, **headers})


def hour(number: float) -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC) + datetime.timedelta(hours=number)


@pytest.mark.parametrize("kind", ["none", "unknown key", "other signer", "stale", "early", "garbage"])
def test_without_a_fresh_signature_of_an_enrolled_key_every_path_answers_401(link, kind):
    key, stranger = link.keys["ant"], _agent_compat.new_key()
    headers = {
        "none": {},
        "unknown key": signed(stranger),
        "other signer": signed(key, signer=stranger),
        "stale": signed(key, at=hour(-1)),
        "early": signed(key, at=hour(1)),
        "garbage": {**signed(key), FLEET_HTTP_SIGNATURE_HEADER: "%%", TIMESTAMP_HEADER: "yesterday"},
    }[kind]
    body = ActivateNodeRequest(public_key=_agent_compat.public_of(key), heartbeat_interval=10.0).SerializeToString()
    with link.http() as http:
        for path in PATHS:
            for method in ("GET", "POST", "PUT", "DELETE", "OPTIONS", "HEAD"):
                answer = http.request(method, path, headers=headers, content=body if method == "POST" else None)
                assert answer.status_code == 401, (method, path)
    assert link.fleet.online() == ()


def test_an_enrolled_key_reaches_the_fleet_routes_of_an_agent_alone(link):
    headers = signed(link.keys["ant"])
    open_paths = {f"/v1/fleet/{route}" for route in FLEET_ROUTES[:8]}
    with link.http() as http:
        for path in PATHS:
            status = http.post(path, headers=headers, content=b"").status_code
            assert (status == 404) == (path not in open_paths), (path, status)
            assert http.get(path, headers=headers).status_code == 404


def test_a_refusal_does_not_wait_for_the_body_and_a_large_one_is_refused(link):
    import socket
    import ssl

    context = ssl.create_default_context(cafile=str(link.tls.authority))
    for headers, status in ((signed(link.keys["ant"]), b"413"), ({}, b"401")):
        lines = [f"{name}: {value}" for name, value in headers.items()]
        head = [f"POST /v1/fleet/push-object HTTP/1.1\r\nhost: x\r\ncontent-length: {MOST_BODY_BYTES + 1}", *lines]
        raw = socket.create_connection(("127.0.0.1", link.port), timeout=10)
        with context.wrap_socket(raw, server_hostname="127.0.0.1") as line:
            line.sendall("\r\n".join(head).encode() + b"\r\n\r\n")  # and not a byte of the body
            assert line.recv(100).split()[1] == status


def test_a_body_without_its_length_is_refused(link):
    with link.http() as http:
        headers = signed(link.keys["ant"])
        assert http.post("/v1/fleet/push-object", headers=headers, content=iter([b"x"])).status_code == 411


def test_an_enrolled_key_cannot_act_for_another_node(link):
    other, mine = link.fleet.nodes["bee"], signed(link.keys["ant"])
    link.client("ant").connect()
    public = _agent_compat.public_of(link.keys["bee"])
    assert post(link, "activate-node", ActivateNodeRequest(public_key=public, heartbeat_interval=10), mine).is_error
    link.grid.push_messages(link.ask(shops=("bee",)).values())
    answer = post(link, "pull-messages", PullMessagesRequest(node=Node(node_id=other)), mine)
    assert answer.status_code == 401
    assert link.fleet.online() == ("ant",)


def received(link: Link, shop: str, asked: dict[str, Message]) -> Message:
    """The message that a connected shop got; replies are its own from now on."""
    client = link.client(shop)
    node = client.connect()
    link.grid.push_messages(asked.values())
    message = client.receive()
    assert message is not None
    _compat.set_identity(message.metadata.run_id, node)
    return message


def pushed(link: Link, bare: Message, whole: Message, signer: str) -> httpx.Response:
    """A reply whose outer message and whose arrays' own message may say different things."""
    whole.metadata.__dict__["_message_id"] = whole.object_id
    bare.metadata.__dict__["_message_id"] = whole.object_id
    request = PushMessagesRequest(
        node=Node(node_id=link.fleet.nodes[signer]),
        messages_list=[message_to_proto(_link_compat.remove_content_from_message(bare))],
        message_object_trees=[get_object_tree(whole)],
        clientapp_runtime_list=[0.0],
    )
    return post(link, "push-messages", request, signed(link.keys[signer]))


def test_an_enrolled_key_cannot_reply_in_anothers_name(link):
    link.client("bee").connect()
    asked = link.ask()
    message = received(link, "ant", asked)
    forged = answer_to(message)
    forged.metadata.__dict__["_src_node_id"] = link.fleet.nodes["bee"]
    forged.metadata.__dict__["_reply_to_message_id"] = asked["bee"].metadata.message_id
    assert pushed(link, forged, forged, "ant").status_code == 403


def test_what_a_reply_says_of_itself_inside_does_not_make_it_anothers(link):
    from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects

    link.client("bee").connect()
    asked = link.ask()
    message = received(link, "ant", asked)
    honest, forged = answer_to(message), answer_to(message, b"forged")
    forged.metadata.__dict__["_src_node_id"] = link.fleet.nodes["bee"]
    forged.metadata.__dict__["_reply_to_message_id"] = asked["bee"].metadata.message_id
    answer = PushMessagesResponse.FromString(pushed(link, honest, forged, "ant").content)
    objects = get_all_nested_objects(forged)
    for part in answer.objects_to_push:
        request = PushObjectRequest(
            node=Node(node_id=link.fleet.nodes["ant"]),
            run_id=message.metadata.run_id,
            object_id=part,
            object_content=objects[part].deflate(),
            session_id=answer.session_id,
        )
        assert post(link, "push-object", request, signed(link.keys["ant"])).status_code == 200
    _compat.set_identity(link.fleet.run_id)
    ids = [one.metadata.message_id for one in asked.values()]
    replies = list(link.grid.pull_messages(ids))
    assert [one.metadata.reply_to_message_id for one in replies] == [asked["ant"].metadata.message_id]
    assert replies[0].has_error()


def test_a_reply_that_is_no_message_is_an_error_and_not_a_crash(link):
    asked = link.ask(shops=("ant",))
    message = received(link, "ant", asked)
    honest = answer_to(message)
    node, content = Node(node_id=link.fleet.nodes["ant"]), RecordDict({})
    request = PushMessagesRequest(
        node=node,
        messages_list=[message_to_proto(_link_compat.remove_content_from_message(honest))],
        message_object_trees=[get_object_tree(content)],
        clientapp_runtime_list=[0.0],
    )
    request.messages_list[0].metadata.message_id = content.object_id
    answer = post(link, "push-messages", request, signed(link.keys["ant"]))
    pushed_part = PushObjectRequest(
        node=node,
        run_id=message.metadata.run_id,
        object_id=content.object_id,
        object_content=content.deflate(),
        session_id=PushMessagesResponse.FromString(answer.content).session_id,
    )
    assert post(link, "push-object", pushed_part, signed(link.keys["ant"])).status_code == 200
    _compat.set_identity(link.fleet.run_id)
    (reply,) = link.grid.pull_messages([asked["ant"].metadata.message_id])
    assert reply.has_error()


def test_a_second_agent_with_the_same_key_is_turned_away_with_409(link):
    first = link.client("ant", "first")
    first.connect()
    second = link.client("ant", "second")
    with pytest.raises(httpx.HTTPStatusError) as refused:
        second.connect()
    assert refused.value.response.status_code == 409
    assert "another agent with this shop's key" in refused.value.response.json()["detail"]
    assert first.receive() is None  # and is not disturbed


def test_after_a_goodbye_another_agent_takes_over_at_once(link):
    first = link.client("ant", "first")
    first.connect()
    first.disconnect()
    assert link.client("ant", "second").connect() == link.fleet.nodes["ant"]


def test_an_agent_must_connect_before_it_asks(link):
    client = link.client("ant")
    client._node.node_id = link.fleet.nodes["ant"]
    with pytest.raises(httpx.HTTPStatusError, match="409"):
        client.receive()


def test_an_agent_that_reconnects_gets_its_unanswered_message_again(link):
    client = link.client("ant")
    client.connect()
    link.grid.push_messages(link.ask(shops=("ant",)).values())
    first = client.receive()
    assert client.receive() is None
    client.connect()
    again = client.receive()
    assert again.metadata.message_id == first.metadata.message_id
    assert data_of(again.content) == data_of(first.content)


def test_what_a_dead_agent_did_not_answer_is_lost_and_its_successor_does_not_get_it(link):
    asked = link.ask(shops=("ant",))
    first = link.client("ant", "first")
    first.connect()
    link.grid.push_messages(asked.values())
    assert first.receive() is not None
    link.fleet._seen[link.fleet.nodes["ant"]].heard -= 60.0
    second = link.client("ant", "second")
    second.connect()
    assert second.receive() is None
    (reply,) = link.grid.pull_messages([asked["ant"].metadata.message_id])
    assert reply.error.code == _compat.NODE_UNAVAILABLE
    assert link.is_empty()


def half_sent(link: Link, client: _agent_compat.FleetClient, message: Message, node: int) -> None:
    """Begin an upload and leave it."""
    _compat.set_identity(message.metadata.run_id, node)
    whole = answer_to(message)
    assert pushed(link, whole, whole, "ant").status_code == 200
    _compat.set_identity(link.fleet.run_id)


@pytest.mark.parametrize("comes_back", [True, False])
def test_a_half_uploaded_reply_of_an_agent_that_died_does_not_hang(link, comes_back):
    asked = link.ask(shops=("ant",))
    client = link.client("ant")
    node = client.connect()
    link.grid.push_messages(asked.values())
    half_sent(link, client, client.receive(), node)
    ids = [asked["ant"].metadata.message_id]
    assert list(link.grid.pull_messages(ids)) == []  # it may still go on
    if comes_back:
        client.connect()
        message = client.receive()
        _compat.set_identity(message.metadata.run_id, node)
        client.send(answer_to(message, b"whole"))
        _compat.set_identity(link.fleet.run_id)
        (reply,) = link.grid.pull_messages(ids)
        assert data_of(reply.content) == b"whole"
    else:
        link.fleet.state.deactivate_node(node)  # as a missed heartbeat does
        (reply,) = link.grid.pull_messages(ids)
        assert reply.has_error()
    assert link.is_empty()


def test_a_node_that_never_connected_answers_unavailable_at_once(link):
    (reply,) = exchange(link.grid, link.ask(shops=("ant",)), deadline_s=30, read=data_of)
    assert (reply.data, reply.refusal) == (None, "")
    assert link.is_empty()


def test_large_arrays_go_both_ways_and_nothing_is_left(link):
    size = 20_000_000
    messages = link.ask(size)
    sent = data_of(messages["ant"].content)
    with agents(link, lambda message: answer_to(message, data_of(message.content)[::-1])):
        exchanged = exchange(link.grid, messages, deadline_s=120, read=data_of, most_bytes=size)
        replies = {reply.shop: reply.data for reply in exchanged}
        assert replies == dict.fromkeys(SHOPS, sent[::-1])
        for _ in range(3):
            assert len(list(exchange(link.grid, link.ask(), deadline_s=120, read=data_of))) == len(SHOPS)
    assert link.is_empty()


def test_a_message_given_up_at_the_deadline_is_forgotten_and_its_late_answer_dropped(link, monkeypatch):
    client = link.client("ant")
    node = client.connect()
    found: list[Message | None] = []

    def take() -> None:
        while not found or found[-1] is None:
            found.append(client.receive())

    taker = threading.Thread(target=take, daemon=True)
    taker.start()
    assert [one.data for one in exchange(link.grid, link.ask(shops=("ant",)), deadline_s=3, read=data_of)] == [None]
    assert link.is_empty()
    taker.join(timeout=10)
    _compat.set_identity(found[-1].metadata.run_id, node)
    client.send(answer_to(found[-1]))  # it does not matter any more
    client.confirm(found[-1])
    assert client.receive() is None
    _compat.set_identity(link.fleet.run_id)
    later = hour(1)
    monkeypatch.setattr(_link_compat, "now", lambda: later)
    link.grid.give_up([])
    assert link.is_empty()


def test_a_message_given_up_while_its_arrays_are_fetched_is_dropped(link, monkeypatch):
    client = link.client("ant")
    client.connect()
    asked = link.ask(shops=("ant",))
    link.grid.push_messages(asked.values())
    pull = client._client.PullObject

    def late(request: object) -> object:
        link.grid.give_up([asked["ant"].metadata.message_id])
        return pull(request)

    monkeypatch.setattr(client._client, "PullObject", late)
    assert client.receive() is None
    assert link.is_empty()


def test_a_stopped_exchange_forgets_its_messages(link):
    link.client("ant").connect()
    stop = threading.Event()
    stop.set()
    with pytest.raises(ProtocolError, match="stopped"):
        list(exchange(link.grid, link.ask(shops=("ant",)), stop=stop, read=data_of))
    assert link.is_empty()


def test_a_message_is_not_handed_out_before_its_arrays_are_there(link, monkeypatch):
    client = link.client("ant")
    client.connect()
    state, seen = link.fleet.state, []
    store = state.store_object

    def slow(*arguments: object) -> bool:
        seen.append(client.receive())
        return store(*arguments)

    monkeypatch.setattr(state, "store_object", slow)
    link.grid.push_messages(link.ask(shops=("ant",)).values())
    assert set(seen) == {None}
    assert client.receive() is not None


def test_the_run_needs_no_heartbeat(link, monkeypatch):
    later = hour(20)
    monkeypatch.setattr("flwr.supercore.corestate.in_memory_corestate.now", lambda: later)
    state, task = link.fleet.state, link.fleet.state.run_ids[link.fleet.run_id].run.primary_task_id
    assert state.acknowledge_task_heartbeat(task)


def test_waiting_for_shops_says_who_is_missing(link):
    link.client("bee").connect()
    assert link.fleet.wait_for(1, deadline_s=5) == ("bee",)
    with pytest.raises(ProtocolError, match=r"1 of 2 shops connected within 0.1 s of 2 needed; not seen: ant"):
        link.fleet.wait_for(2, deadline_s=0.1)
    stop = threading.Event()
    stop.set()
    with pytest.raises(ProtocolError, match="stopped"):
        link.fleet.wait_for(2, deadline_s=60, stop=stop)
