"""Contracts of the private Flower symbols that fedrec uses; run these before moving to another Flower version."""

import os

import flwr.supercore.telemetry as telemetry
import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, RecordDict

from fedrec.flower import _compat


@pytest.fixture
def message():
    _compat.set_identity(run_id=7)
    return Message(RecordDict({"a": ConfigRecord({"n": 1})}), 42, "train", group_id="3")


def test_messages_carry_the_identity_of_this_process(message):
    assert (message.metadata.run_id, message.metadata.src_node_id) == (7, 1)
    assert _compat.COORDINATOR_NODE_ID == 1


def test_a_message_keeps_the_id_it_is_given_and_replies_name_it(message):
    assert message.metadata.message_id == ""
    _compat.set_message_id(message, "m5")
    assert message.metadata.message_id == "m5"
    reply = Message(Error(_compat.CLIENT_APP_FAILED), reply_to=message)
    assert reply.metadata.reply_to_message_id == "m5"
    assert (reply.metadata.src_node_id, reply.metadata.dst_node_id) == (42, 1)


def test_content_can_be_replaced_without_touching_the_original(message):
    copy = _compat.with_content(message, RecordDict())
    assert copy.metadata.group_id == "3"
    assert len(copy.content) == 0
    assert len(message.content) == 1


def test_copied_containers_hold_the_same_entries_but_are_not_shared():
    array = Array(np.ones(2))
    content = RecordDict({"a": ConfigRecord({"n": 1}), "b": ArrayRecord({"x": array})})
    copy = _compat.copy_containers(content)
    assert copy == content
    assert copy["b"]["x"] is content["b"]["x"]
    del copy["b"]["x"]
    copy["a"]["n"] = 2
    del copy["a"]
    assert content["a"]["n"] == 1
    assert list(content["b"]) == ["x"]
    copy["c"] = ConfigRecord({"n": 3})
    assert "c" not in content
    with pytest.raises(TypeError):
        copy["d"] = 3


def test_the_source_of_a_message_can_be_set(message):
    reply = Message(Error(_compat.NODE_UNAVAILABLE), reply_to=message)
    _compat.set_source(reply, 1)
    assert reply.metadata.src_node_id == 1


def test_error_codes_are_flowers():
    assert (_compat.CLIENT_APP_FAILED, _compat.NODE_UNAVAILABLE) == (2, 5)


def test_an_empty_run_has_its_id():
    assert _compat.empty_run(7).run_id == 7


def test_flower_does_not_phone_home():
    assert os.environ["FLWR_TELEMETRY_ENABLED"] == "0"
    assert os.environ["FLWR_DISABLE_UPDATE_CHECK"] == "1"
    assert telemetry.FLWR_TELEMETRY_ENABLED == "0"
