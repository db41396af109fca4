"""Numbers and sentences that the terminal and the report share."""

from collections.abc import Callable
from typing import Any

import pytest

from fedrec.reports import summary

Make = Callable[..., dict[str, Any]]


@pytest.mark.parametrize(
    ("value", "text"), [(0.12634, ".1263"), (0.0, ".0000"), (1.0, "1.0000"), (-0.00104, "−.0010"), (None, "–")]
)
def test_scores_read_as_in_papers(value: float | None, text: str) -> None:
    assert summary.score(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(0.0522, "+.0522"), (-0.001, "−.0010"), (0, "0"), (-0.00001, "+.0000"), (None, "–")]
)
def test_differences_carry_their_sign(value: float | None, text: str) -> None:
    assert summary.signed(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.00042, ".0004"), (0.9432, ".943"), (4.794, "4.79"), (60.26, "60.3"), (1234.5, "1,234"), (0, ".000")],
)
def test_figures_of_any_size_keep_three_digits(value: float, text: str) -> None:
    assert summary.figure(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(999, "999 B"), (1000, "1.0 kB"), (74_912_560, "74.9 MB"), (2.4e9, "2.4 GB"), (None, "–")]
)
def test_sizes_choose_their_unit(value: float | None, text: str) -> None:
    assert summary.size(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(0.044, "0.04 s"), (12.46, "12.5 s"), (187.2, "3 min 07 s"), (119.9, "2 min 00 s")]
)
def test_durations_choose_their_unit(value: float, text: str) -> None:
    assert summary.duration(value) == text


@pytest.mark.parametrize("estimate", [None, {}, {"mean": 0.1, "low": None, "high": None}])
def test_an_interval_that_does_not_exist_is_a_dash(estimate: dict[str, float | None] | None) -> None:
    assert summary.interval(estimate) == summary.signed_interval(estimate) == "–"


def test_intervals_show_both_ends() -> None:
    assert summary.interval({"low": 0.0311, "high": 0.0732}) == ".0311–.0732"
    assert summary.signed_interval({"low": -0.0311, "high": 0.0732}) == "−.0311 to +.0732"


def test_the_sentences_count_shops_that_join_gain_and_lose(record_of: Make) -> None:
    record = record_of(4)
    gains = [(0.03, 0.01, 0.05, "joins"), (0.02, -0.01, 0.05, "joins"), (-0.01, -0.02, 0.01, "joins"), (0, 0, 0, "")]
    for row, (mean, low, high, decision) in zip(record["gain"]["shops"].values(), gains, strict=True):
        row |= {"mean": mean, "low": low, "high": high, "decision": decision or "stays local"}
    record["gain"]["worst"] = {"shop": "shop-002", "mean": -0.01}
    text = " ".join(summary.sentences(record))
    assert "3 of 4 shops join; 2 of them gain on test, 1 beyond chance. 1 stays with the local model" in text
    assert "No shop is harmed" in text
    assert "the largest point loss is −.0100, in shop-002." in text


def test_a_gain_whose_interval_holds_zero_is_called_chance(record_of: Make) -> None:
    record = record_of(4)
    record["gain"]["macro"] = {"mean": 0.01, "low": -0.01, "high": 0.03}
    assert "may be chance" in summary.sentences(record)[0]
    record["gain"]["macro"] = {"mean": 0.02, "low": 0.01, "high": 0.03}
    assert "chance" not in summary.sentences(record)[0]


def test_best_sellers_that_beat_the_shops_own_models_are_named(record_of: Make) -> None:
    record = record_of(4)
    assert not [text for text in summary.sentences(record) if "best-sellers" in text]
    record["scores"]["popularity"]["macro"]["ndcg@10"]["mean"] = 0.5
    assert [text for text in summary.sentences(record) if "best-sellers of each shop (.5000)" in text]


def test_harmed_shops_are_said_plainly(record_of: Make) -> None:
    record = record_of(4)
    record["gain"] |= {"harmed_shops": 2, "worst": {"shop": "shop-003", "mean": -0.02}}
    assert "2 shops are harmed" in " ".join(summary.sentences(record))


def test_what_was_never_measured_is_left_out(record_of: Make) -> None:
    record = record_of(1, untested=1)
    assert summary.sentences(record)[0].startswith("1 of 1 shop joins.")
    assert summary.sentences({**record, "gain": None, "main_column": "pooled"}) == []


def test_columns_under_a_promise_carry_their_epsilon() -> None:
    assert summary.title_of("federated_dp_personal@0.5") == "federated DP(ε 0.5) + personal"
    assert summary.title_of("dp_popularity@8") == "DP popularity, ε 8"
    assert summary.title_of("my_own") == "my own"
    assert summary.note_of("federated_dp@2")
    assert summary.note_of("my_own") == ""


def test_places_with_little_room_show_the_main_epsilon_alone(record_of: Make) -> None:
    columns = summary.key_columns(record_of(3, epsilons=(2.0, 8.0)))
    assert [column for column in columns if "@" in column] == [
        "dp_popularity@2",
        "federated_dp@2",
        "federated_dp_personal@2",
    ]
    assert "pooled" in columns


def test_the_sentences_say_what_each_epsilon_brings_and_whether_a_shop_can_lose(record_of: Make) -> None:
    record = record_of(4, epsilons=(2.0, 0.5, 8.0))
    for gain, (mean, low) in zip(record["gain_by_epsilon"], [(0.001, -0.01), (0.02, 0.01), (0.03, 0.02)], strict=True):
        gain["macro"] = {"mean": mean, "low": low, "high": 0.05}
        gain["worst"] = {"shop": "shop-001", "mean": -0.01 / gain["epsilon"]}
    text = " ".join(summary.sentences(record))
    assert "A shop that takes part under ε 2 gets lists" in text
    assert "+.0010 at ε 0.5, +.0200 at ε 2, +.0300 at ε 8; beyond chance at ε 2, 8." in text
    assert "At no epsilon is a shop harmed" in text
    assert "−.0200, in shop-001 at ε 0.5" in text
    record["gain_by_epsilon"][0]["harmed_shops"] = 2
    assert "Harmed by joining (Holm-corrected 95\u00a0% intervals): 2 shops at ε 0.5." in summary.sentences(record)


def test_one_epsilon_needs_no_comparison_of_several(record_of: Make) -> None:
    text = " ".join(summary.sentences(record_of(4, epsilons=(2.0,))))
    assert "What joining brings on average" not in text
    assert "At no epsilon" not in text


def test_a_private_model_under_dp_popularity_is_named(record_of: Make) -> None:
    record = record_of(4, epsilons=(2.0,))
    assert "Every private model beats DP popularity, the floor at the same epsilon." in summary.sentences(record)
    record["scores"]["federated_dp@2"]["macro"]["ndcg@10"]["mean"] = 0.001
    text = " ".join(summary.sentences(record))
    assert "Under DP popularity, the floor for private models: federated DP(ε 2) (.0010 against" in text


@pytest.mark.parametrize(
    ("reasons", "words"),
    [
        (["no gain on validation"], "1 stays with the local model, since validation showed no gain."),
        ([summary.SAYS_MORE], "1 stays with the local model, since its own shoppers say more than the noisy sum."),
        ([summary.SAYS_MORE] * 2, "2 stay with the local model, since their own shoppers say more than the noisy sum."),
        (
            [summary.SAYS_MORE, "no gain on validation"],
            "since validation showed no gain, or (1) its own shoppers say more than the noisy sum.",
        ),
    ],
)
def test_shops_that_stay_local_are_counted_by_their_reason(record_of: Make, reasons: list[str], words: str) -> None:
    record = record_of(4)
    row = next(iter(record["gain"]["shops"].values()))
    record["gain"]["shops"] = {
        f"shop-{n}": {**row, "decision": "stays local", "reason": reason} for n, reason in enumerate(reasons)
    }
    assert words in " ".join(summary.sentences(record))
