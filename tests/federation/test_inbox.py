"""What a coordinator finds again after a crash."""

from __future__ import annotations

import pytest

from fedrec.errors import StoreError
from fedrec.federation.inbox import Inbox

FIRST, SECOND = b"1" * 32, b"2" * 32


def test_uploads_and_survivors_are_there_for_the_next_process(tmp_path):
    inbox = Inbox(tmp_path / "inbox")
    inbox.keep_setup(b"keys")
    inbox.open(FIRST)
    inbox.keep_upload("ant", b"a")
    inbox.keep_upload("Shop No. 7 / ü", b"b")
    assert inbox.survivors() is None
    again = Inbox(tmp_path / "inbox")
    assert again.setup() == b"keys"
    again.open(FIRST)
    assert again.uploads() == {"ant": b"a", "Shop No. 7 / ü": b"b"}
    again.keep_survivors(("ant",))
    again.keep_upload("late", b"c")  # it came after the survivors were named
    third = Inbox(tmp_path / "inbox")
    third.open(FIRST)
    assert third.survivors() == {"ant"}
    assert third.uploads() == {"ant": b"a"}


def test_another_plan_begins_empty_and_the_old_round_goes(tmp_path):
    inbox = Inbox(tmp_path)
    inbox.keep_setup(b"keys")
    inbox.open(FIRST)
    inbox.keep_upload("ant", b"a")
    inbox.keep_survivors(("ant",))
    inbox.open(SECOND)
    assert inbox.uploads() == {}
    assert inbox.survivors() is None
    assert inbox.setup() == b"keys"
    inbox.open(FIRST)
    assert inbox.uploads() == {}


def test_a_new_inbox_is_empty_and_refuses_uploads_of_no_round(tmp_path):
    inbox = Inbox(tmp_path / "none")
    assert inbox.setup() is None
    for asked in (inbox.uploads, inbox.survivors, lambda: inbox.keep_upload("ant", b"a")):
        with pytest.raises(StoreError, match="no round is open"):
            asked()


def test_a_folder_that_cannot_be_written_is_one_error(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    inbox = Inbox(tmp_path / "file" / "inbox")
    with pytest.raises(StoreError, match="cannot be made"):
        inbox.keep_setup(b"keys")
    with pytest.raises(StoreError, match="cannot be made"):
        inbox.open(FIRST)
