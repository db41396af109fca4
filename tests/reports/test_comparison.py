"""The report page."""

import re
import tomllib
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from fedrec.errors import StoreError
from fedrec.reports.comparison import render, to_toml, write_report

Make = Callable[..., dict[str, Any]]
VOID = {"meta", "br", "hr", "img", "input", "link", "path", "use", "rect", "circle"}


class Page(HTMLParser):
    """What a browser would load, and whether elements close in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.references: list[str] = []
        self.text: list[str] = []
        self.svgs: list[dict[str, str | None]] = []
        self.misnested: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag not in VOID:
            self.open.append(tag)
        if tag == "svg":
            self.svgs.append(values)
        if values.get("id"):
            self.ids.append(str(values["id"]))
        self.references += [str(values[name]) for name in ("href", "src", "xlink:href") if values.get(name)]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if tag in VOID:
            return
        if not self.open or self.open.pop() != tag:
            self.misnested.append(tag)

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] not in ("style", "script"):
            self.text.append(data)


@pytest.mark.parametrize(("shops", "untested"), [(1, 0), (1, 1), (31, 2), (100, 3)])
def test_a_page_of_any_number_of_shops_is_sound_and_loads_nothing(record_of: Make, shops: int, untested: int) -> None:
    text = render(record_of(shops, untested=untested))
    page = Page(text)
    assert page.misnested == []
    assert page.open == []
    assert len(page.ids) == len(set(page.ids))
    assert [ref for ref in page.references if not ref.startswith("#")] == []
    assert {ref[1:] for ref in page.references} <= set(page.ids)
    assert not re.search(r"https?:|<script|@import|url\((?!#)", text)
    assert not re.search(r"\b(None|nan|NaN|inf|Undefined)\b", " ".join(page.text).replace("none: research", ""))


@pytest.mark.parametrize("epsilons", [(2.0,), (2.0, 0.5, 8.0)])
@pytest.mark.parametrize("shops", [1, 8, 31])
def test_a_page_with_private_columns_is_sound_and_says_what_they_promise(
    record_of: Make, shops: int, epsilons: tuple[float, ...]
) -> None:
    record = record_of(shops, epsilons=epsilons)
    text = render(record)
    page = Page(text)
    assert page.misnested == page.open == []
    assert len(page.ids) == len(set(page.ids))
    assert {ref[1:] for ref in page.references} <= set(page.ids)
    shown = " ".join(" ".join(page.text).split())
    assert not re.search(r"\b(None|nan|NaN|inf|Undefined)\b", shown.replace("none: research", ""))
    for epsilon in epsilons:
        assert f"DP popularity, ε {epsilon:g}" in shown
        assert f"federated DP(ε {epsilon:g}) + personal" in shown
        assert f"privacy/eps-{epsilon:g}/ledger.sqlite" in shown
    assert "Gain from joining against ε" in shown
    assert "Not protected: the coordinator sees each sum." in shown
    assert "1.23, 2.35, 3.46" in shown
    assert "co-occurrence σ 2.35" in shown
    assert "ε 2: 2 noisy pairs" in shown
    assert ("Gain at ε 8" in shown) == (8.0 in epsilons)


def test_many_equal_rounds_and_settings_take_a_line_each(record_of: Make) -> None:
    record = record_of(3, epsilons=(2.0,))
    federated = record["privacy"]["runs"][0]["federated"]
    federated["schedule"] += [{"name": "gradient step", "noise_multiplier": 6.236}] * 30
    federated["settings"] = {f"private_{place}": None if place == 7 else place for place in range(12)}
    federated["rounds"] = record["rounds"] * 20
    text = render(record)
    words = " ".join(" ".join(Page(text).text).split())
    assert "co-occurrence σ 2.35, 30 × gradient step σ 6.24" in words
    assert "11 settings private 0 0" in words
    assert re.search(r'class="scroll tall"[^>]*aria-label="Rounds"', text)


def test_every_round_is_listed_once_and_the_page_says_which_are_in_the_total(record_of: Make) -> None:
    plain = ["1 popularity", "2 co-occurrence"]
    assert rounds_of(record_of(3)) == (plain, "")
    first, counted = "Of each ε the rounds of its first noise draw.", "The rounds and bytes counted on top are those"
    record = record_of(3, epsilons=(2.0, 0.5))
    private = ["ε 0.5: 2 noisy pairs", "ε 2: 2 noisy pairs"]
    assert rounds_of(record) == (plain + private, f"{first} {counted} without an ε alone.")
    record["columns"] = [name for name in record["columns"] if name not in ("federated", "federated_personal")]
    record["rounds"] = record["privacy"]["runs"][1]["federated"]["rounds"]
    assert rounds_of(record) == (private, f"{first} {counted} of ε 2 alone.")
    del record["privacy"]["runs"][0]
    assert rounds_of(record) == (private[1:], first)


def rounds_of(record: dict[str, Any]) -> tuple[list[str], str]:
    """The rounds that the page lists, and the sentence above them."""
    _, _, section = render(record).partition("<h2>Rounds and costs</h2>")
    above, _, below = section.partition("<tbody>")
    rows = re.findall(r'<th scope="row">(.*?)</th>', below.partition("</tbody>")[0])
    said = re.search(r"<p>(.*?)</p>", above)
    return rows, said[1] if said else ""


def test_tested_are_the_shoppers_that_were_scored(record_of: Make) -> None:
    record = record_of(2)
    shown = " ".join(" ".join(Page(render(record)).text).split())
    assert "Items Tested Gain" in shown
    assert "shop-000 6,000 900 6,000 " in shown
    for column in record["scores"].values():
        column["shops"]["shop-000"]["test_shoppers"] = 100
    shown = " ".join(" ".join(Page(render(record)).text).split())
    assert "Items Tested of those with test items Gain" in shown
    assert "shop-000 6,000 900 100 of 6,000 " in shown
    assert "shop-001 60 900 60 +" in shown


def test_a_benchmarks_promise_is_called_one(record_of: Make) -> None:
    record = record_of(3, epsilons=(2.0,))
    assert "not a deployable guarantee" not in render(record)
    record["privacy"]["is_benchmark"] = True
    assert "not a deployable guarantee" in render(record)


def test_the_curve_names_every_epsilon_and_size_class(record_of: Make) -> None:
    record = record_of(8, epsilons=(0.5, 4.0))
    plot = next(svg for svg in Page(render(record)).svgs if "epsilon" in str(svg["aria-label"]))
    for gain in record["gain_by_epsilon"]:
        mean = f"{gain['macro']['mean']:.4f}".removeprefix("0")
        assert f"+{mean} at epsilon {gain['epsilon']:g}" in str(plot["aria-label"])
    drawn = re.findall(r"<svg.*?</svg>", render(record), flags=re.DOTALL)
    curve = next(svg for svg in drawn if "Gain over all shops" in svg)
    for name, row in record["gain_by_epsilon"][0]["classes"].items():
        assert f"{name} ({row['shops']})" in curve


def test_the_page_shows_the_figures_of_the_record(record_of: Make) -> None:
    record = record_of(3)
    shown = " ".join(" ".join(Page(render(record)).text).split())
    for column in record["columns"]:
        mean = record["scores"][column]["macro"]["ndcg@10"]["mean"]
        assert f"{mean:.4f}".removeprefix("0") in shown
    for shop, row in record["gain"]["shops"].items():
        assert shop in shown
        assert f"{abs(row['mean']):.4f}".removeprefix("0") in shown
    assert record["guarantee"] in shown
    assert "dropped: cancelled <or> negative 340" in shown
    assert "sha256:0123456789abcdef" in shown
    assert "HR@10 (99 negatives, clean) – .6100" in shown


def test_every_plot_has_a_text_and_takes_its_colours_from_the_page(record_of: Make) -> None:
    text = render(record_of(5, epsilons=(1.0, 2.0)))
    plots = Page(text).svgs
    assert len(plots) == 6
    assert all(plot["role"] == "img" and len(str(plot["aria-label"])) > 20 for plot in plots)
    drawn = "".join(re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL))
    assert re.findall(r"(?:fill|stroke): #[0-9a-f]+", drawn) == []
    used = set(re.findall(r"var\(--([a-z-]+)\)", drawn))
    assert used <= set(re.findall(r"--([a-z-]+):", text))


def test_dark_mode_and_print_name_every_colour_of_the_light_page(record_of: Make) -> None:
    blocks = re.findall(r":root \{(.*?)\}", render(record_of(1)), flags=re.DOTALL)
    light, dark, on_paper = (set(re.findall(r"--([a-z-]+): #", block)) for block in blocks)
    assert light == dark == on_paper


@pytest.mark.parametrize("background", ["light", "dark"])
def test_text_contrasts_with_its_background_at_least_as_the_guidelines_ask(record_of: Make, background: str) -> None:
    blocks = re.findall(r":root \{(.*?)\}", render(record_of(1)), flags=re.DOTALL)
    colours = dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6}|#[0-9a-f]{3})\b", blocks[background == "dark"]))
    for name in ("ink", "soft", "accent", "good", "bad"):
        for behind in ("paper", "panel"):
            assert contrast(colours[name], colours[behind]) >= 4.5, (name, behind)
    private = ("dp-popularity", "federated-dp", "federated-dp-personal")
    for column in ("popularity", "local", "federated", "federated-personal", "pooled", *private):
        assert contrast(colours[column], colours["paper"]) >= 2.5, column


def contrast(one: str, other: str) -> float:
    """Contrast ratio of two colours, WCAG 2.1."""
    bright, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (bright + 0.05) / (dark + 0.05)


def luminance(colour: str) -> float:
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_names_from_the_data_cannot_become_markup(record_of: Make) -> None:
    record = record_of(2, name="plain")
    evil = "<script>alert(1)</script>"
    record["data"]["source"] = evil
    record["data"]["shops"][0]["shop"] = evil
    for column in record["columns"]:
        shops = record["scores"][column]["shops"]
        shops[evil] = shops.pop("shop-000")
    record["gain"]["shops"][evil] = record["gain"]["shops"].pop("shop-000")
    text = render(record)
    assert "<script" not in text
    assert "&lt;script&gt;" in text


def test_a_run_without_gain_or_plots_still_has_a_page(record_of: Make) -> None:
    record = record_of(2)
    record |= {"gain": None, "columns": ["federated"], "main_column": "federated", "learning_curve": []}
    record["scores"] = {"federated": record["scores"]["federated"]}
    record["compatibility"] = None
    record["model"] |= {"settings": {}, "tuned": []}
    text = render(record)
    assert "Comparison: made-up" in text
    assert "Gain against shop size" not in text
    assert "Learning curve" not in text


def test_the_same_record_gives_the_same_page(record_of: Make) -> None:
    assert render(record_of(4)) == render(record_of(4))


def test_the_scenario_on_the_page_is_the_configuration_without_what_is_not_set() -> None:
    config = {
        "name": 'a "b"',
        "seed": 3,
        "data": {"events": None, "columns": {"item": "Artikel Nr"}, "min_rating": 0.5, "synthetic": {"n": 1}},
        "evaluation": {"ks": [10, 20], "on": True, "empty": {}},
    }
    back = tomllib.loads(to_toml(config))
    assert back == {
        "name": 'a "b"',
        "seed": 3,
        "data": {"columns": {"item": "Artikel Nr"}, "min_rating": 0.5, "synthetic": {"n": 1}},
        "evaluation": {"ks": [10, 20], "on": True},
    }


def test_a_report_is_written_whole_and_a_bad_place_is_refused(record_of: Make, tmp_path: Path) -> None:
    write_report(record_of(1), tmp_path / "report.html")
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
    assert (tmp_path / "report.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    with pytest.raises(StoreError, match="cannot be written"):
        write_report(record_of(1), tmp_path / "none" / "report.html")


def alternatives(record: dict[str, Any]) -> dict[str, str]:
    """What each plot says to those who cannot see it, by the heading above it."""
    text = render(record)
    found = re.findall(r"<h2>([^<]*)</h2>\s*<p>[^<]*</p>\s*<figure><svg role=\"img\" aria-label=\"([^\"]*)\"", text)
    return dict(found)


def test_loss_metric_and_epsilon_have_a_curve_over_rounds_with_a_text(record_of: Make) -> None:
    record = record_of(8, epsilons=(2.0, 0.5))
    record["learning_curve"] = [
        {"round": place + 1, "loss": 7.5 - place, "ndcg@10": 0.05 * (3 - abs(2 - place)), "validation ndcg@10": 0.04}
        for place in range(4)
    ]
    record["model"]["early_stopping"] = {"patience": 1, "round": 3, "figure": "validation ndcg@10"}
    page = alternatives(record)
    assert page["Training loss"] == "Training loss goes from 7.5 in round 1 to 4.5 in round 4."
    assert "at most .1500 after round 3" in page["Learning curve"]
    assert page["ε by round"] == "Epsilon spent: 1.23 after 2 rounds, 1.23 after 2 rounds."
    words = " ".join(Page(render(record)).text)
    assert "round 3 of 2, the best on validation shoppers (raw data, no guarantee)" in words
    assert "on validation" in render(record)


def test_without_rounds_there_are_no_such_curves(record_of: Make) -> None:
    record = record_of(8)
    assert alternatives(record).keys() & {"Training loss", "ε by round"} == set()
    record["learning_curve"] = [{"round": 1, "loss": 7.0, "ndcg@10": 0.1}]
    assert alternatives(record).keys() & {"Training loss", "Learning curve"} == set()


def test_a_part_of_the_shops_is_named_in_words_and_in_the_table_of_rounds(record_of: Make) -> None:
    record = record_of(8)
    record["rounds"] = [{**one, "shops": 3, "failed": 1, "not_asked": 4} for one in record["rounds"]]
    words = " ".join(Page(render(record)).text)
    assert "Each round asks 4 shops of 8, drawn anew by the seed." in words
    assert "4 not asked" in words
