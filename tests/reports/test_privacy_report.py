"""The privacy report as a page and as a file."""

from __future__ import annotations

import json
import re
import sqlite3
import stat
from dataclasses import replace
from datetime import timedelta

import pytest

from fedrec.errors import ConfigError, LedgerBehind, LedgerTampered, StoreError
from fedrec.privacy.spec import Mode
from fedrec.reports.privacy_entries import Book, notes_of, read_source
from fedrec.reports.privacy_report import (
    HTML_FILE,
    JSON_FILE,
    KEY_FILE,
    make_report,
    render_html,
    report_key,
    write_report,
)
from fedrec.reports.privacy_words import alike, names, of_hundred
from fedrec.secure_aggregation.keys import IdentityKey

from .privacy_ledgers import PAIRS, SAMPLED, Clock, anchor, charge, make_shop, open_ledger, spec
from .test_comparison import Page


@pytest.fixture(scope="module")
def books(tmp_path_factory):
    """A shop with two runs over days, one distributed, and a budget by the year."""
    place = tmp_path_factory.mktemp("shop") / "shop.db"
    ledger = open_ledger(place, period="year", clock=Clock(timedelta(days=10)))
    charge(ledger, "winter")
    ledger.finish("winter")
    for _ in range(40):
        ledger.note_time()
    ledger.start_year()
    charge(ledger, "spring", promise=spec(Mode.DISTRIBUTED))
    charge(open_ledger(place, "fr"), "winter")
    open_ledger(place, "new <b>shop</b>")
    return read_source(str(place))


@pytest.fixture(scope="module")
def report(books):
    return make_report(books, IdentityKey.generate(), source="shop <i>db</i>")


def text_of(page: str) -> str:
    return re.sub(r"\s+", " ", "".join(Page(page).text))


def test_the_page_is_sound_and_loads_nothing(report):
    text = render_html(report)
    page = Page(text)
    assert (page.open, page.misnested) == ([], [])
    assert len(page.ids) == len(set(page.ids))
    assert [one for one in page.references if not one.startswith("#")] == []
    assert not re.search(r"https?://|<script|@import|url\((?!#)", text)
    assert "<b>shop</b>" not in text
    assert "<i>db</i>" not in text
    assert [svg["role"] for svg in page.svgs] == ["img", "img"]


def test_the_page_says_what_a_lawyer_asks(report):
    text = text_of(render_html(report))
    for words in (
        "Protected is one shopper (one account) with all her events in one shop",
        "Nothing is promised between shoppers of one shop.",
        "Not protected from the coordinator",
        "Rollback not detectable (3 shops)",
        "times in 100 (a coin: 50)",
        "lifetime, at δ 1e-06",
        "Where he held it for 10",
        report["signature"]["fingerprint"],
    ):
        assert words in text, words


def test_the_page_of_a_year_shows_the_lifetime_beside_it(report):
    text = render_html(report)
    assert "a year, year 2" in text_of(text)
    assert "Dotted: the lifetime" in text


def test_a_page_without_releases_is_sound(tmp_path):
    open_ledger(tmp_path / "shop.db")
    page = Page(render_html(make_report(read_source(str(tmp_path / "shop.db")), IdentityKey.generate(), source="x")))
    assert (page.open, page.misnested, page.svgs) == ([], [], [])
    assert "Nothing was released, and nothing is reserved." in "".join(page.text)


def test_a_page_of_sampled_sums_and_many_promises_is_sound(tmp_path):
    found = []
    for number in range(8):
        ledger = open_ledger(tmp_path / f"{number}.db", epsilon=8.0 + number)
        charge(ledger, "run", SAMPLED[:1] if number == 0 else (replace(PAIRS, noise_multiplier=9.0 - number),))
        found.append(Book(f"eps-{number + 1}", read_source(str(tmp_path / f"{number}.db"))[0].shops))
    text = render_html(make_report(found, IdentityKey.generate(), source="run"))
    page = Page(text)
    assert (page.open, page.misnested, len(page.svgs)) == ([], [], 2)
    assert "8 promises (ε 1, ε 2" in text_of(text)
    assert "Shown are 6 of 8" in text


def test_files_are_written_in_place_of_earlier_ones(report, tmp_path):
    for _ in range(2):
        page, file = write_report(report, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [HTML_FILE, JSON_FILE]
    assert json.loads(file.read_bytes()) == report
    assert page.read_text() == render_html(report)


def test_a_folder_that_is_not_there_is_refused(report, tmp_path):
    with pytest.raises(StoreError, match="cannot be written"):
        write_report(report, tmp_path / "none")


def test_the_reports_key_is_its_owners_alone_and_stays(tmp_path):
    first, second = report_key(tmp_path), report_key(tmp_path)
    assert first.public == second.public
    assert stat.S_IMODE((tmp_path / KEY_FILE).stat().st_mode) == 0o600


def test_the_json_holds_no_path_and_no_password(books):
    text = json.dumps(make_report(books, IdentityKey.generate(), source="database"))
    assert "/tmp" not in text
    assert "sqlite" not in text


def test_shops_with_the_same_figures_share_a_line(tmp_path):
    for name in ("de", "fr", "uk"):
        make_shop(tmp_path / "shop.db", name, runs=2 if name == "uk" else 1)
    [book] = make_report(read_source(str(tmp_path / "shop.db")), IdentityKey.generate(), source="x")["document"][
        "books"
    ]
    assert [found for found, _ in alike(book["shops"])] == [["de", "fr"], ["uk"]]


@pytest.mark.parametrize(
    ("share", "text"),
    [
        (0.5, "50"),
        (0.599123, "59.9"),
        (0.0163, "1.63"),
        (1.0, "100"),
        (0.9999812, "99.998"),
        (0.9996, "99.96"),
        (0.99999999, "99.999999"),
    ],
)
def test_a_chance_is_never_rounded_to_certainty(share, text):
    assert of_hundred(share) == text


def test_many_names_are_counted():
    assert names(["a", "b"]) == "a, b"
    assert names(["a", "b", "c", "d", "e"], 2) == "a, b and 3 more"


def test_a_runs_record_says_what_counts_as_declared(tmp_path, record_of):
    record = record_of(3, epsilons=(2.0,))
    (tmp_path / "run.json").write_text(json.dumps(record))
    (tmp_path / "privacy" / "eps-2").mkdir(parents=True)
    place = tmp_path / "privacy" / "eps-2" / "ledger.sqlite"
    for row in record["data"]["shops"]:
        charge(open_ledger(place, row["shop"]), "run")
    notes = notes_of(str(tmp_path))
    assert notes[0] == "Public inputs: counted as declared."
    assert notes[1].startswith("These are the ledgers of the first of 3 noise draws")
    report = make_report(read_source(str(tmp_path)), IdentityKey.generate(), source="run", notes=notes)
    assert notes[1] in text_of(render_html(report))
    assert notes_of("sqlite://") == notes_of(str(tmp_path / "privacy")) == []
    change(place, "DELETE FROM ledger_entries WHERE shop = 'shop-001'", "DELETE FROM ledger_payloads")
    with pytest.raises(LedgerTampered, match="the ledger of shop 'shop-001' was removed"):
        read_source(str(tmp_path))


@pytest.mark.parametrize("shop", [None, "uk"])
def test_a_ledger_cut_behind_what_an_anchor_countersigned_is_not_reported(tmp_path, shop):
    ledger = make_shop(tmp_path / "shop.db")
    anchor(ledger, tmp_path)
    ledger.close()
    read_source(str(tmp_path / "shop.db"), shop)
    change(tmp_path / "shop.db", "DELETE FROM ledger_entries WHERE sequence > 3")
    with pytest.raises(LedgerBehind, match=r"rolled back or edited.*countersigned entry 4.*among its 3 entries"):
        read_source(str(tmp_path / "shop.db"), shop)


@pytest.mark.parametrize("shop", [None, "uk"])
@pytest.mark.parametrize("is_alone", [True, False])
def test_a_ledger_without_entries_is_not_passed_over(tmp_path, shop, is_alone):
    ledger = make_shop(tmp_path / "shop.db")
    anchor(ledger, tmp_path)
    ledger.close()
    if not is_alone:
        make_shop(tmp_path / "shop.db", "fr").close()
    change(tmp_path / "shop.db", "DELETE FROM ledger_entries WHERE shop = 'uk'")
    with pytest.raises(LedgerTampered, match="'uk': all its entries were removed"):
        read_source(str(tmp_path / "shop.db"), shop)


def test_a_ledger_that_recovered_what_its_anchor_saw_is_reported(tmp_path):
    ledger = make_shop(tmp_path / "shop.db")
    anchor(ledger, tmp_path)
    lost = ledger.head()
    ledger.close()
    change(tmp_path / "shop.db", "DELETE FROM ledger_entries WHERE sequence > 3")
    open_ledger(tmp_path / "shop.db", clock=Clock(timedelta(days=30))).recover([lost])
    [book] = read_source(str(tmp_path / "shop.db"))
    assert book.shops[0].entries[-1].kind == "recover"


def change(place, *statements):
    connection = sqlite3.connect(place)
    with connection:
        for statement in statements:
            connection.execute(statement)
    connection.close()


def test_a_run_whose_ledgers_are_gone_is_told_so(tmp_path, record_of):
    (tmp_path / "run.json").write_text(json.dumps(record_of(3, epsilons=(2.0,))))
    with pytest.raises(StoreError, match="left no ledgers"):
        read_source(str(tmp_path))
    (tmp_path / "run.json").write_text(json.dumps(record_of(3)))
    with pytest.raises(ConfigError, match="promises nothing"):
        read_source(str(tmp_path))
