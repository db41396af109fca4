"""The privacy report: what was promised to shoppers and what it has cost, as signed JSON and as one HTML page.

The JSON carries every ledger entry it speaks of, so that `fedrec.reports.privacy_check` can count again. The signature
covers all of it but itself.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from fedrec import __version__
from fedrec.federation.run_record import write_atomically
from fedrec.privacy.ledger_entries import canonical
from fedrec.reports import privacy_words as words
from fedrec.reports import summary
from fedrec.reports.privacy_entries import Book
from fedrec.reports.privacy_figures import document, rounded
from fedrec.reports.privacy_plots import pictures
from fedrec.secure_aggregation.keys import IdentityKey

REPORT_FORMAT = 1
KIND = "fedrec privacy report"
HTML_FILE, JSON_FILE, KEY_FILE = "privacy-report.html", "privacy-report.json", "privacy-report.key"

Report = Mapping[str, Any]


def make_report(books: Sequence[Book], key: IdentityKey, *, source: str, notes: Sequence[str] = ()) -> dict[str, Any]:
    """A signed report.

    Args:
        books: from `fedrec.reports.privacy_entries.read_source`.
        key: that signs it; best the shop's own identity.
        source: what was reported, for people.
        notes: further assumptions; the signature vouches for them, no entry does.
    Returns:
        JSON values.
    Raises:
        LedgerTampered: a ledger is not to be trusted.
        AccountantsDisagree: epsilon cannot be vouched for.
    """
    report = {
        "kind": KIND,
        "format": REPORT_FORMAT,
        "created_utc": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "fedrec": __version__,
        "source": source,
        "notes": list(notes),
        "document": rounded(document(books)),
        "ledgers": [book.to_json() for book in books],
        "signature": {
            "algorithm": "Ed25519",
            "public_key": key.public.raw.hex(),
            "fingerprint": key.public.fingerprint(),
        },
    }
    report["signature"]["value"] = key.sign(signed_bytes(report)).hex()
    return report


def signed_bytes(report: Report) -> bytes:
    """What a report's signature covers: all of it but the signature's value, after a prefix of its own."""
    signature = {name: value for name, value in report["signature"].items() if name != "value"}
    return KIND.encode() + b"\0" + canonical({**report, "signature": signature})


def render_json(report: Report) -> str:
    """The file's text; the only spelling that `privacy_check` takes."""
    return json.dumps(report, indent=1, allow_nan=False, ensure_ascii=False) + "\n"


def write_report(report: Report, folder: Path) -> tuple[Path, Path]:
    """Write page and JSON into a folder, in place of earlier ones.

    Returns:
        Where the page and the JSON are.
    Raises:
        StoreError: they cannot be written.
    """
    page, file = folder / HTML_FILE, folder / JSON_FILE
    write_atomically(file, render_json(report).encode())
    write_atomically(page, render_html(report).encode())
    return page, file


def report_key(folder: Path) -> IdentityKey:
    """The key in a folder that signs its reports, made (mode 0600) where there is none.

    Raises:
        StoreError: it cannot be read or written.
    """
    path = folder / KEY_FILE
    if not path.exists():
        IdentityKey.generate().save(path)
    return IdentityKey.load(path)


def render_html(report: Report) -> str:
    """The page: styles and plots inline, no scripts, no requests."""
    environment = Environment(
        loader=PackageLoader("fedrec.reports"),
        autoescape=select_autoescape(default=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "count": summary.count,
        "number": words.number,
        "of_hundred": words.of_hundred,
        "names": words.names,
        "title_of": words.title_of,
        "percent": lambda share: f"{100 * share:.3g}\u00a0%",
        "when": lambda utc: utc.replace("T", " ").split("+")[0].split(".")[0],
    }
    books = report["document"]["books"]
    shops = [shop for book in books for shop in book["shops"]]
    return environment.get_template("privacy.html").render(
        report=report,
        books=books,
        words=report["document"]["words"],
        headline=headline(report),
        subtitle=subtitle(report),
        tiles=_tiles(books),
        groups=[(book, words.alike(book["shops"])) for book in books],
        longest=max(shops, key=lambda shop: len(shop["history"])),
        pictures=pictures(books),
        json_file=JSON_FILE,
    )


def headline(report: Report) -> str:
    """What the page is about."""
    shops = {shop["shop"] for book in report["document"]["books"] for shop in book["shops"]}
    return f"Privacy of {f'shop {next(iter(shops))}' if len(shops) == 1 else f'{len(shops)} shops'}"


def subtitle(report: Report) -> str:
    """One line: where from, how much."""
    books = report["document"]["books"]
    shops = [shop for book in books for shop in book["shops"]]
    ledgers = summary.plural(len(shops), "ledger")
    runs = summary.plural(sum(len(book["runs"]) for book in books), "run")
    releases = summary.plural(sum(shop["releases"] for shop in shops), "release")
    return f"{report['source']}: {ledgers}, {runs}, {releases}"


def _tiles(books: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """Key figures on top, of the shop that has spent most: value, what it is, a remark."""
    shops = [shop for book in books for shop in book["shops"]]
    worst = max(shops, key=lambda shop: shop["lifetime"])
    budget = worst["budget"]
    which = "" if len(shops) == 1 else "the most of any ledger here"
    period = "for life" if budget["period"] == "lifetime" else f"in year {worst['years']}"
    share = of_budget(worst)
    return [
        {
            "value": f"ε {words.number(worst['lifetime'])}",
            "title": "lifetime, at δ " + f"{budget['delta']:g}",
            "note": which,
        },
        {
            "value": f"ε {words.number(worst['spent'])}",
            "title": f"spent of {budget['epsilon']:g} {period}",
            "note": share,
        },
        {"value": f"ε {words.number(worst['left'])}", "title": "left for one more run", "note": ""},
        {
            "value": f"{words.of_hundred(worst['lifetime_odds']['right_of_coin'])} of 100",
            "title": "right guesses at best, was she there?",
            "note": "a coin: 50",
        },
    ]


def of_budget(shop: Mapping[str, Any]) -> str:
    """What unfinished runs have reserved on top."""
    reserved = shop["committed"] > shop["spent"]
    return f"with open runs {words.number(shop['committed'])}" if reserved else "no open reservations"
