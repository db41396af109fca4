"""A ledger that was cut, edited or moved is noticed; so are damaged files and newer versions."""

from __future__ import annotations

import json
import shutil
import sqlite3
from datetime import UTC, datetime

import pytest

from fedrec.errors import LedgerBehind, LedgerTampered, LedgerTooNew, PrivacyError
from fedrec.privacy.ledger import Budget, Ledger
from fedrec.privacy.ledger_entries import START, canonical, chain
from fedrec.privacy.mechanisms import PlannedRelease
from fedrec.privacy.spec import Mode, PrivacySpec

SPEC = PrivacySpec(
    epsilon=3.0, delta=1e-5, mode=Mode.LOCAL, public_shoppers=100, max_shoppers=1000, min_shops=3, colluders=1
)
RELEASE = PlannedRelease("gram", 1.0, 16.0)
SCHEDULE = (RELEASE,) * 4
TIME = datetime(2026, 1, 1, tzinfo=UTC)


def open_book(path, shop="north"):
    return Ledger.open(path, shop, clock=lambda: TIME)


def charge(book, index, run="r", plan=b"p" * 32):
    return book.charge(run, index, plan, RELEASE, f"payload {index}".encode())


@pytest.fixture
def path(tmp_path):
    """A file with the ledgers of two shops, three charges each: entries 1 (open), 2 (reserve), 3-5 (charges)."""
    for shop in ("north", "south"):
        book = Ledger.open(tmp_path / "ledger.db", shop, budget=Budget(3.0, 1e-5), clock=lambda: TIME)
        book.reserve("r", SPEC, SCHEDULE)
        for index in range(3):
            charge(book, index)
        book.close()
    return tmp_path / "ledger.db"


def change(path, *statements):
    with sqlite3.connect(path) as connection:
        for statement in statements:
            assert connection.execute(*statement).rowcount > 0
    connection.close()


def text_of(path, sequence):
    with sqlite3.connect(path) as connection:
        query = "SELECT text FROM ledger_entries WHERE shop = 'north' AND sequence = ?"
        text = connection.execute(query, (sequence,)).fetchone()[0]
    connection.close()
    return json.loads(text)


def edited(path, sequence, edit):
    """An entry with one change, its hash made to fit."""
    fields = text_of(path, sequence)
    edit(fields)
    with sqlite3.connect(path) as connection:
        query = "SELECT hash FROM ledger_entries WHERE shop = 'north' AND sequence = ?"
        found = connection.execute(query, (sequence - 1,)).fetchone()
    connection.close()
    text = canonical(fields)
    return text, chain(found[0] if found else START, text)


def set_text(path, sequence, edit, *, with_hash):
    text, fitting = edited(path, sequence, edit)
    where = "WHERE shop = 'north' AND sequence = ?"
    if with_hash:
        change(path, (f"UPDATE ledger_entries SET text = ?, hash = ? {where}", (text, fitting, sequence)))
    else:
        change(path, (f"UPDATE ledger_entries SET text = ? {where}", (text, sequence)))


def cheaper(fields):
    fields["what"]["cost"]["gdp"] = 0.0


def richer(fields):
    fields["what"]["budget"]["epsilon"] = 100.0


SWAP = (
    ("UPDATE ledger_entries SET sequence = 99 WHERE shop = 'north' AND sequence = 3",),
    ("UPDATE ledger_entries SET sequence = 3 WHERE shop = 'north' AND sequence = 4",),
    ("UPDATE ledger_entries SET sequence = 4 WHERE shop = 'north' AND sequence = 99",),
)


@pytest.mark.parametrize(
    "tamper",
    [
        lambda path: set_text(path, 4, cheaper, with_hash=False),
        lambda path: set_text(path, 4, cheaper, with_hash=True),
        lambda path: set_text(path, 5, cheaper, with_hash=True),
        lambda path: set_text(path, 1, richer, with_hash=False),
        lambda path: set_text(path, 1, richer, with_hash=True),
        lambda path: change(path, ("DELETE FROM ledger_entries WHERE shop = 'north' AND sequence = 4",)),
        lambda path: change(path, ("DELETE FROM ledger_entries WHERE shop = 'north' AND sequence = 1",)),
        lambda path: change(path, *SWAP),
        lambda path: change(path, ("UPDATE ledger_entries SET hash = zeroblob(32) WHERE sequence = 5",)),
        lambda path: change(path, ("UPDATE ledger_entries SET text = x'7b7d' WHERE sequence = 5",)),
    ],
    ids=[
        "edited entry", "edited, its hash made to fit", "edited last entry, its hash made to fit", "edited budget",
        "edited budget, its hash made to fit", "removed entry", "removed first entry", "swapped entries",
        "edited hash", "no entry at all",
    ],
)  # fmt: skip
def test_tampering_is_noticed_when_the_ledger_is_opened_and_while_it_is_open(path, tamper, tmp_path):
    watching = open_book(path)
    tamper(path)
    with pytest.raises(LedgerTampered):
        open_book(path)
    with pytest.raises(LedgerTampered):
        watching.verify()


def test_entries_of_another_shop_are_not_taken_for_ones_own(path):
    change(
        path,
        ("DELETE FROM ledger_entries WHERE shop = 'north'",),
        ("UPDATE ledger_entries SET shop = 'north' WHERE shop = 'south'",),
    )
    with pytest.raises(LedgerTampered, match="written for shop 'south'"):
        open_book(path)


def test_a_charge_that_costs_nothing_is_noticed_though_the_whole_chain_fits(path):
    def free(fields):
        fields["what"]["costs"] = [{"gdp": 0.0, "renyi": 0.0}] * 4

    set_text(path, 2, free, with_hash=True)
    change(path, ("DELETE FROM ledger_entries WHERE shop = 'north' AND sequence > 2",))
    with pytest.raises(LedgerTampered, match="costs do not follow"):
        open_book(path).verify()


def test_a_cut_tail_is_noticed_by_whoever_keeps_the_head(path):
    book = open_book(path)
    head = book.head()
    book.close()
    change(path, ("DELETE FROM ledger_entries WHERE shop = 'north' AND sequence = 5",))
    cut = open_book(path)
    assert cut.verify().sequence == 4  # by itself it cannot know
    with pytest.raises(LedgerBehind, match="release 5"):
        cut.check_anchor(head)


@pytest.mark.parametrize(
    "call",
    [lambda book: charge(book, 3), lambda book: book.reserve("s", SPEC, SCHEDULE), lambda book: book.head()],
    ids=["charge", "reserve", "head"],
)
def test_a_tail_cut_under_an_open_ledger_is_noticed_by_itself(path, call):
    book = open_book(path)
    change(path, ("DELETE FROM ledger_entries WHERE shop = 'north' AND sequence = 5",))
    with pytest.raises(LedgerTampered, match="is gone"):
        call(book)


def test_changed_bytes_are_not_sent_again(path):
    change(path, ("UPDATE ledger_payloads SET payload = x'00' WHERE shop = 'north' AND sequence = 4",))
    book = open_book(path)
    assert book.stored("r", 0, b"p" * 32).payload == b"payload 0"
    with pytest.raises(LedgerTampered):
        book.stored("r", 1, b"p" * 32)
    with pytest.raises(LedgerTampered):
        book.verify()


def test_a_ledger_of_a_newer_version_is_refused(path):
    def newer(fields):
        fields["format"] = 2

    set_text(path, 5, newer, with_hash=True)
    with pytest.raises(LedgerTooNew, match="format 2"):
        open_book(path)


@pytest.mark.parametrize("size", [17, 100, 4096, 8192, 16384])
def test_a_truncated_file_is_refused(path, size):
    content = path.read_bytes()
    assert len(content) > size
    path.write_bytes(content[:size])
    with pytest.raises(PrivacyError) as refused:
        open_book(path).verify()
    assert isinstance(refused.value, LedgerTampered)


def test_a_file_that_is_no_database_is_refused(tmp_path):
    (tmp_path / "ledger.db").write_bytes(b"not a database, by far" * 1000)
    with pytest.raises(LedgerTampered):
        Ledger.open(tmp_path / "ledger.db", "north", budget=Budget(1.0, 1e-5))


@pytest.mark.parametrize("where", [0.3, 0.6, 0.9])
def test_no_flipped_byte_of_an_entry_goes_unnoticed(path, where):
    with sqlite3.connect(path) as connection:
        query = "SELECT text FROM ledger_entries WHERE shop = 'north' AND sequence = 4"
        text = bytearray(connection.execute(query).fetchone()[0])
    connection.close()
    text[int(len(text) * where)] ^= 1
    change(path, ("UPDATE ledger_entries SET text = ? WHERE shop = 'north' AND sequence = 4", (bytes(text),)))
    with pytest.raises(LedgerTampered):
        open_book(path)


def backup(path, tmp_path):
    copy = tmp_path / "backup.db"
    shutil.copy(path, copy)  # all connections are closed: nothing is left in the write-ahead log
    return copy


def test_a_restored_backup_refuses_until_what_it_lacks_is_charged_in_full(path, tmp_path):
    copy = backup(path, tmp_path)
    book = open_book(path)
    heads = [book.head(), charge(book, 3), book.charge("r", 0, b"q" * 32, RELEASE, b"again")]
    book.close()

    restored = open_book(copy)
    with pytest.raises(LedgerBehind, match="restored backup"):
        restored.check_anchor(heads)
    for call in (
        lambda: charge(restored, 3),
        lambda: restored.reserve("s", SPEC, SCHEDULE),
        lambda: restored.stored("r", 0, b"p" * 32),
    ):
        with pytest.raises(LedgerBehind):
            call()
    head = restored.recover(heads)
    assert head.spent.gdp == pytest.approx(5 / 256)  # what the lost copy had spent, and nothing twice
    assert head.sequence > heads[-1].sequence
    assert head.parent == heads[-1].place
    restored.check_anchor([*heads, head])
    assert charge(restored, 3).spent.gdp == pytest.approx(6 / 256)
    assert restored.spent().recovered_costs.gdp == pytest.approx(2 / 256)
    restored.verify()
    reopened = open_book(copy)
    reopened.check_anchor([*heads, head])
    assert reopened.spent().rollback_detectable


def test_without_the_common_past_a_recovery_charges_the_whole_of_the_lost_copy(path, tmp_path):
    copy = backup(path, tmp_path)
    book = open_book(path)
    charge(book, 3)
    last = book.charge("r", 0, b"q" * 32, RELEASE, b"again")
    restored = open_book(copy)
    with pytest.raises(LedgerBehind):
        restored.check_anchor(last)
    assert restored.recover(last).spent.gdp == pytest.approx(8 / 256)  # 3 of its own and 5 of the copy


def test_a_cloned_machine_is_caught_and_both_spendings_count(path, tmp_path):
    clone = open_book(backup(path, tmp_path))
    book = open_book(path)
    common = book.head()
    ours, theirs = charge(book, 3), clone.charge("r", 3, b"t" * 32, RELEASE, b"theirs")
    assert ours.sequence == theirs.sequence
    with pytest.raises(LedgerBehind, match="cloned machine"):
        clone.check_anchor([common, ours])
    head = clone.recover([common, ours])
    assert head.spent.gdp == pytest.approx(5 / 256)  # 3 together, one each
    clone.check_anchor([common, ours, head])


def test_a_recovery_can_take_the_budget_from_under_a_reservation(path, tmp_path):
    copy = backup(path, tmp_path)
    book = open_book(path)
    expensive = PlannedRelease("gram", 1.0, 1.6)
    book.reserve("big", SPEC, (expensive,))
    head = book.charge("big", 0, b"p" * 32, expensive, b"x")
    restored = open_book(copy)
    restored.reserve("other", SPEC, (PlannedRelease("gram", 1.0, 1.6),))  # before the anchors were asked
    restored.recover([head])
    with pytest.raises(PrivacyError, match="lost copy"):
        restored.charge("other", 0, b"p" * 32, expensive, b"y")


def test_a_head_of_another_shop_is_refused(path):
    with pytest.raises(LedgerTampered):
        open_book(path).check_anchor(open_book(path, "south").head())


def test_a_ledger_that_began_anew_is_behind_its_anchor(path, tmp_path):
    head = open_book(path).head()
    anew = Ledger.open(tmp_path / "new.db", "north", budget=Budget(3.0, 1e-5), clock=lambda: TIME)
    assert not anew.spent().rollback_detectable
    with pytest.raises(LedgerBehind):
        anew.check_anchor(head)
    assert anew.recover(head).spent == head.spent


def test_two_ledgers_that_began_at_the_same_instant_differ(tmp_path):
    one, two = (
        Ledger.open(tmp_path / name, "north", budget=Budget(3.0, 1e-5), clock=lambda: TIME) for name in ("a", "b")
    )
    assert one.entries()[0].hash != two.entries()[0].hash
