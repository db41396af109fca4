"""A privacy report that was changed anywhere does not hold."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from fedrec.errors import ConfigError, StoreError
from fedrec.federation.anchors import Receipt
from fedrec.reports.privacy_check import Verdict, read_report, verify
from fedrec.reports.privacy_entries import read_source
from fedrec.reports.privacy_report import JSON_FILE, make_report, render_json, report_key, signed_bytes, write_report
from fedrec.secure_aggregation.keys import IdentityKey

from .privacy_ledgers import anchor, charge, make_shop


@pytest.fixture(scope="module")
def reported(tmp_path_factory):
    """A shop's database with an anchored head, its signed report, and what the anchor keeps."""
    folder = tmp_path_factory.mktemp("shop")
    ledger = make_shop(folder / "shop.db", runs=2)
    kept = anchor(ledger, folder)
    ledger.close()
    report = make_report(read_source(str(folder / "shop.db")), report_key(folder), source="shop.db")
    write_report(report, folder)
    return folder, report, kept


def verdicts(report, **more):
    data = more.pop("data", None) or render_json(report).encode()
    return {check.name: check.verdict for check in verify(report, data, **more)}


def resigned(report, change):
    """The report after a change, signed anew by somebody else."""
    forged = json.loads(json.dumps(report))
    change(forged)
    key = IdentityKey.generate()
    forged["signature"] = {
        "algorithm": "Ed25519",
        "public_key": key.public.raw.hex(),
        "fingerprint": key.public.fingerprint(),
    }
    forged["signature"]["value"] = key.sign(signed_bytes(forged)).hex()
    return forged


def test_a_true_report_holds_in_everything(reported):
    folder, _, kept = reported
    report, data = read_report(folder / JSON_FILE)
    key = report["signature"]["fingerprint"]
    checks = verify(report, data, public_key=key, ledger=str(folder / "shop.db"), anchor=kept)
    assert [check.name for check in checks] == [
        *("form", "signature", "chain", "figures", "accountants", "ledger", "anchor")
    ]
    assert {check.verdict for check in checks} == {Verdict.HOLDS}


def test_what_was_not_given_is_said_to_be_unchecked(reported):
    _, report, _ = reported
    found = verdicts(report)
    assert (found["ledger"], found["anchor"]) == (Verdict.NOT_CHECKED, Verdict.NOT_CHECKED)
    assert Verdict.FAILS not in found.values()


def test_any_changed_byte_of_the_file_is_found(reported, tmp_path):
    folder, _, _ = reported
    data = (folder / JSON_FILE).read_bytes()
    rng = random.Random(0)
    digits = [place for place, byte in enumerate(data) if chr(byte).isdigit()]
    places = [*rng.sample(digits, 40), *rng.sample(range(len(data)), 20)]
    for place in places:
        other = next(sign for sign in b"37x" if sign != data[place])
        changed = data[:place] + bytes([other]) + data[place + 1 :]
        (tmp_path / "changed.json").write_bytes(changed)
        try:
            report, read = read_report(tmp_path / "changed.json")
        except StoreError:
            continue
        found = [check.verdict for check in verify(report, read)[:2]]
        assert Verdict.FAILS in found, data[place - 30 : place + 30]


def test_a_changed_figure_is_found_though_it_was_signed_again(reported):
    _, report, _ = reported

    def change(forged):
        forged["document"]["books"][0]["shops"][0]["lifetime"] -= 0.5

    found = verdicts(resigned(report, change))
    assert found["signature"] is Verdict.HOLDS
    assert found["figures"] is Verdict.FAILS


def test_a_changed_sentence_is_found_though_it_was_signed_again(reported):
    _, report, _ = reported

    def change(forged):
        del forged["document"]["words"]["not_promised"][0]

    assert verdicts(resigned(report, change))["figures"] is Verdict.FAILS


def test_a_signature_by_somebody_else_is_found_by_the_shops_key(reported):
    _, report, _ = reported
    forged = resigned(report, lambda _: None)
    key = report["signature"]
    assert verdicts(forged)["signature"] is Verdict.HOLDS
    assert verdicts(forged, public_key=key["fingerprint"])["signature"] is Verdict.FAILS
    assert verdicts(report, public_key=key["public_key"].upper())["signature"] is Verdict.HOLDS


@pytest.mark.parametrize("field", ["value", "public_key", "fingerprint", "algorithm"])
def test_a_signature_without_its_parts_fails(reported, field):
    _, report, _ = reported
    forged = json.loads(json.dumps(report))
    del forged["signature"][field]
    assert verdicts(forged)["signature"] is Verdict.FAILS


def test_an_entry_left_out_breaks_the_chain(reported):
    _, report, _ = reported

    def change(forged):
        del forged["ledgers"][0]["shops"][0]["entries"][3]

    found = verdicts(resigned(report, change))
    assert (found["chain"], found["figures"]) == (Verdict.FAILS, Verdict.NOT_CHECKED)


def test_an_edited_entry_breaks_the_chain(reported):
    _, report, _ = reported

    def change(forged):
        entry = forged["ledgers"][0]["shops"][0]["entries"][1]
        entry["text"] = entry["text"].replace('"noise_multiplier":12.0', '"noise_multiplier":13.0')

    assert verdicts(resigned(report, change))["chain"] is Verdict.FAILS


def test_entries_cut_off_at_the_end_are_found_by_the_database_and_by_the_anchor(reported, tmp_path):
    folder, _, kept = reported
    short = [
        type(book)(book.name, tuple(type(copy)(copy.shop, copy.entries[:5]) for copy in book.shops))
        for book in read_source(str(folder / "shop.db"))
    ]
    report = make_report(short, IdentityKey.generate(), source="shop.db")
    assert set(verdicts(report).values()) == {Verdict.HOLDS, Verdict.NOT_CHECKED}
    assert verdicts(report, anchor=kept)["anchor"] is Verdict.FAILS
    assert verdicts(report, ledger=str(folder / "shop.db"))["ledger"] is Verdict.HOLDS


def test_a_ledger_that_went_on_still_holds_the_report(tmp_path):
    ledger = make_shop(tmp_path / "shop.db")
    report = make_report(read_source(str(tmp_path / "shop.db")), IdentityKey.generate(), source="shop.db")
    charge(ledger, "later")
    checks = verify(report, render_json(report).encode(), ledger=str(tmp_path / "shop.db"))
    [check] = [one for one in checks if one.name == "ledger"]
    assert check.verdict is Verdict.HOLDS
    assert "3 more by now" in check.text


def test_another_ledger_of_the_same_shop_is_not_the_reports(reported, tmp_path):
    _, report, _ = reported
    make_shop(tmp_path / "shop.db", runs=2)
    assert verdicts(report, ledger=str(tmp_path / "shop.db"))["ledger"] is Verdict.FAILS
    make_shop(tmp_path / "other.db", "fr")
    assert verdicts(report, ledger=str(tmp_path / "other.db"))["ledger"] is Verdict.FAILS


def test_one_receipt_is_an_anchor_too(reported, tmp_path):
    folder, report, _ = reported
    receipt = read_source(str(folder / "shop.db"))[0].shops[0].receipts[0]
    (tmp_path / "receipt.json").write_bytes(receipt.to_bytes())
    assert verdicts(report, anchor=tmp_path / "receipt.json")["anchor"] is Verdict.HOLDS


def test_a_head_that_the_ledger_never_had_is_found(reported, tmp_path):
    _, report, _ = reported
    other = tmp_path / "other"
    other.mkdir()
    kept = anchor(make_shop(other / "shop.db"), other)
    assert verdicts(report, anchor=kept)["anchor"] is Verdict.FAILS
    receipt = read_source(str(other / "shop.db"))[0].shops[0].receipts[0]
    assert isinstance(receipt, Receipt)

    def change(forged):
        forged["ledgers"][0]["shops"][0]["receipts"] = [json.loads(receipt.to_bytes())]

    assert verdicts(resigned(report, change))["anchor"] is Verdict.FAILS


@pytest.fixture(scope="module")
def signed(tmp_path_factory):
    """A shop's report signed with another key than its own, the anchor's file, a receipt, and three keys."""
    folder = tmp_path_factory.mktemp("signed")
    keys = {name: IdentityKey.generate() for name in ("shop", "anchor", "report")}
    ledger = make_shop(folder / "shop.db", runs=2)
    kept = anchor(ledger, folder, shop_key=keys["shop"], anchor_key=keys["anchor"])
    ledger.close()
    books = read_source(str(folder / "shop.db"))
    (folder / "receipt.json").write_bytes(books[0].shops[0].receipts[0].to_bytes())
    return make_report(books, keys["report"], source="shop.db"), kept, folder / "receipt.json", keys, books


def anchor_line(report, **more):
    data = render_json(report).encode()
    [check] = [check for check in verify(report, data, **more) if check.name == "anchor"]
    return check


def test_signatures_of_heads_are_checked_or_said_not_to_be(signed):
    report, kept, receipt, keys, books = signed
    shop, stranger, other = (keys[name].public.raw.hex() for name in ("shop", "report", "anchor"))
    found = anchor_line(report, anchor=kept)
    assert found.verdict is Verdict.HOLDS
    assert found.text.endswith("signatures not checked (give --shop-key)")
    assert anchor_line(report, anchor=kept, shop_key=shop).text.endswith("signed by the key of --shop-key")
    for path in (kept, receipt, None):
        found = anchor_line(report, anchor=path, shop_key=stranger)
        assert found.verdict is Verdict.FAILS
        assert found.text.endswith("entry 8: the head is not signed by the key of --shop-key")
    found = anchor_line(report, anchor=receipt, shop_key=shop)
    assert found.text.endswith("by the key of --shop-key, countersignatures not checked (give --anchor-key)")
    found = anchor_line(report, anchor=receipt, shop_key=shop.upper(), anchor_key=other)
    assert found.text.endswith("signed by the key of --shop-key, countersignatures too")
    found = anchor_line(report, anchor=receipt, shop_key=shop, anchor_key=stranger)
    assert found.verdict is Verdict.FAILS
    by_shop = make_report(books, keys["shop"], source="shop.db")
    assert anchor_line(by_shop, anchor=kept).text.endswith("signed by the key that signed the report")


def test_a_head_whose_signature_was_changed_fails(signed, tmp_path):
    report, kept, _, keys, _ = signed
    fields = json.loads(kept.read_bytes())
    fields["heads"][0]["signature"] = "00" * 64
    (tmp_path / "kept.json").write_text(json.dumps(fields))
    key = keys["shop"].public.raw.hex()
    assert anchor_line(report, anchor=tmp_path / "kept.json", shop_key=key).verdict is Verdict.FAILS


def test_keys_that_are_none_are_refused(signed):
    report, kept, _, keys, _ = signed
    for wrong in ({"public_key": "zz"}, {"public_key": "zz" * 32}, {"public_key": ""}, {"shop_key": "abcd"}):
        with pytest.raises(ConfigError, match="give"):
            verdicts(report, **wrong)
    with pytest.raises(ConfigError, match="give --shop-key too"):
        verdicts(report, anchor=kept, anchor_key=keys["anchor"].public.raw.hex())


def test_a_shops_key_is_for_a_report_of_one_shop(tmp_path):
    for shop in ("fr", "uk"):
        make_shop(tmp_path / "shop.db", shop).close()
    key = IdentityKey.generate()
    report = make_report(read_source(str(tmp_path / "shop.db")), key, source="shop.db")
    with pytest.raises(ConfigError, match="of 2 shops"):
        verdicts(report, shop_key=key.public.raw.hex())


def test_an_anchor_of_other_shops_says_nothing(reported, tmp_path):
    _, report, _ = reported
    kept = anchor(make_shop(tmp_path / "fr.db", "fr"), tmp_path)
    assert verdicts(report, anchor=kept)["anchor"] is Verdict.FAILS


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "is not JSON"),
        ("[1, 2]", "is not a privacy report"),
        ('{"kind": "something"}', "is not a privacy report"),
        ('{"kind": "fedrec privacy report", "format": 2}', "reads up to 1: install a newer version"),
        ('{"kind": "fedrec privacy report", "format": NaN}', "is not JSON"),
        ("[" * 100_000, "is not JSON"),
    ],
)
def test_files_that_are_no_report_are_refused(tmp_path, text, why):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(StoreError, match=why):
        read_report(tmp_path / "x.json")


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(StoreError, match="cannot be read"):
        read_report(tmp_path / "x.json")


@pytest.mark.parametrize("wrong", [None, 3, "x", [], {}, [{}], [{"name": "x", "shops": 3}]])
def test_broken_parts_fail_in_a_line_and_not_by_a_crash(reported, wrong):
    _, report, _ = reported
    for part in ("ledgers", "document", "signature", "format", "source"):
        forged = json.loads(json.dumps(report)) | {part: wrong}
        assert Verdict.FAILS in verdicts(forged).values()


def test_an_anchors_file_must_hold_heads(reported, tmp_path):
    _, report, _ = reported
    (tmp_path / "x.json").write_text("{}")
    for path in (tmp_path / "x.json", Path("pyproject.toml").absolute()):
        with pytest.raises(ConfigError, match="holds no ledger heads"):
            verdicts(report, anchor=path)
    with pytest.raises(StoreError, match="cannot be read"):
        verdicts(report, anchor=tmp_path / "missing.json")
