"""What a privacy ledger reserves, charges, refuses and remembers."""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedrec.errors import (
    BadDelta,
    BadEpsilon,
    BudgetExhausted,
    ClockWentBack,
    ConfigError,
    PrivacyError,
    RoundRefused,
    TooManyAborts,
)
from fedrec.privacy import accounting
from fedrec.privacy.ledger import Budget, Ledger
from fedrec.privacy.ledger_entries import Costs, Counting, Head, Kind
from fedrec.privacy.ledger_filters import RenyiFilter, best_order
from fedrec.privacy.mechanisms import PlannedRelease
from fedrec.privacy.spec import Mode, PrivacySpec

SPEC = PrivacySpec(
    epsilon=3.0, delta=1e-5, mode=Mode.DISTRIBUTED, public_shoppers=100, max_shoppers=1000, min_shops=3, colluders=1
)
FIRST, SECOND = PlannedRelease("popularity", 1.5, 8.0), PlannedRelease("gram", 1.0, 4.0)
SCHEDULE = (FIRST, SECOND)  # mu^2 = 1/64 + 1/16 = 0.078125
PLAN, OTHER = b"a" * 32, b"b" * 32


class Clock:
    """A clock that tests set."""

    def __init__(self) -> None:
        self.now = datetime(2026, 1, 1, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now


def ledger(epsilon=3.0, delta=1e-5, *, place="sqlite://", shop="north", clock=None, **more):
    return Ledger.open(place, shop, budget=Budget(epsilon, delta, **more), clock=clock or Clock())


def test_charges_add_up_to_the_exact_epsilon_of_gaussian_releases():
    book = ledger()
    book.reserve("r", SPEC, SCHEDULE)
    head = book.charge("r", 0, PLAN, FIRST, b"x")
    assert head.spent.gdp == pytest.approx(1 / 64)
    head = book.charge("r", 1, PLAN, SECOND, b"y")
    assert head.spent.gdp == pytest.approx(5 / 64)
    assert head == book.head()
    mu = math.sqrt(5 / 64)
    spent = book.spent()
    assert spent.epsilon == pytest.approx(gdp_epsilon(mu, 1e-5), rel=1e-6)
    assert spent.committed_epsilon == spent.epsilon == spent.lifetime_epsilon
    assert (spent.num_charges, spent.num_aborts, spent.counting) == (2, 0, Counting.GDP)


def gdp_epsilon(mu: float, delta: float) -> float:
    """By bisection on the exact curve (Dong, Roth, Su 2019, corollary 2.13), with the normal distribution's erfc."""

    def phi(x):
        return math.erfc(-x / math.sqrt(2)) / 2

    low, high = 0.0, 50.0
    for _ in range(200):
        middle = (low + high) / 2
        above = phi(mu / 2 - middle / mu) - math.exp(middle) * phi(-mu / 2 - middle / mu) > delta
        low, high = (middle, high) if above else (low, middle)
    return high


def test_an_entry_says_what_when_by_which_code_and_with_which_parameters():
    book = ledger()
    book.reserve("run-7", SPEC, SCHEDULE, is_noise_seeded=True, residual_delta=1e-12)
    book.charge("run-7", 1, PLAN, SECOND, b"payload")
    opened, reserved, charged = book.entries()
    assert [entry.kind for entry in (opened, reserved, charged)] == [Kind.OPEN, Kind.RESERVE, Kind.CHARGE]
    assert reserved.what["spec"]["epsilon"] == 3.0
    assert reserved.what["spec"]["mode"] == "distributed"
    assert (reserved.what["residual_delta"], reserved.what["is_noise_seeded"]) == (1e-12, True)
    assert [release["noise_multiplier"] for release in reserved.what["schedule"]] == [8.0, 4.0]
    assert (charged.what["run"], charged.what["round"], charged.what["plan"]) == ("run-7", 1, PLAN.hex())
    assert charged.what["release"] == {
        "name": "gram", "clip_norm": 1.0, "noise_multiplier": 4.0, "sampling_rate": 1.0
    }  # fmt: skip
    assert charged.what["cost"]["gdp"] == 1 / 16
    assert charged.utc == datetime(2026, 1, 1, tzinfo=UTC)
    assert charged.code


def test_a_run_that_the_budget_does_not_cover_is_refused_with_the_figures():
    book = ledger(epsilon=1.5)
    book.reserve("one", SPEC, SCHEDULE)
    before = book.entries()
    with pytest.raises(BudgetExhausted) as refused:
        book.reserve("two", SPEC, (PlannedRelease("gram", 1.0, 2.0),))
    assert book.entries() == before
    for words in ("epsilon 1.5", "spent 0", "with open reservations 1.0", "'two' asks for", "smaller epsilon"):
        assert words in str(refused.value)


def test_reserved_budget_is_not_for_another_run_until_the_first_finishes():
    book = ledger(epsilon=1.5)
    book.reserve("one", SPEC, SCHEDULE)
    book.charge("one", 0, PLAN, FIRST, b"x")
    with pytest.raises(BudgetExhausted):
        book.reserve("two", SPEC, SCHEDULE)
    book.finish("one")
    book.reserve("two", SPEC, SCHEDULE)
    assert book.spent().period_costs.gdp == pytest.approx(1 / 64)


def test_a_reservation_is_made_once_and_its_terms_stay():
    book = ledger()
    book.reserve("r", SPEC, SCHEDULE)
    book.reserve("r", SPEC, SCHEDULE)
    assert len(book.entries()) == 2
    with pytest.raises(RoundRefused, match="schedule"):
        book.reserve("r", SPEC, (FIRST,))
    with pytest.raises(RoundRefused, match="spec"):
        book.reserve("r", replace(SPEC, epsilon=2.0), SCHEDULE)
    with pytest.raises(RoundRefused):
        book.reserve("empty", SPEC, ())


def test_the_same_plan_is_charged_once_and_its_bytes_are_given_again():
    book = ledger()
    book.reserve("r", SPEC, SCHEDULE)
    assert book.stored("r", 0, PLAN) is None
    head = book.charge("r", 0, PLAN, FIRST, b"the bytes")
    assert book.charge("r", 0, PLAN, FIRST, b"the bytes") == head
    found = book.stored("r", 0, PLAN)
    assert (found.payload, found.head) == (b"the bytes", head)
    assert book.spent().num_charges == 1


def test_other_bytes_for_a_charged_plan_are_refused():
    book = ledger()
    book.reserve("r", SPEC, SCHEDULE)
    book.charge("r", 0, PLAN, FIRST, b"the bytes")
    with pytest.raises(RoundRefused, match="other bytes"):
        book.charge("r", 0, PLAN, FIRST, b"fresh noise")
    assert book.stored("r", 0, PLAN).payload == b"the bytes"


def test_another_plan_of_a_round_is_charged_again_until_the_shops_limit():
    book = ledger(max_aborts=2)
    book.reserve("r", SPEC, SCHEDULE)
    for plan in (b"1" * 32, b"2" * 32, b"3" * 32):
        book.charge("r", 0, plan, FIRST, plan)
    assert book.spent().period_costs.gdp == pytest.approx(3 / 64)
    for index, release in enumerate(SCHEDULE[:1]):
        with pytest.raises(TooManyAborts, match="2 a run"):
            book.charge("r", index, b"4" * 32, release, b"")
    book.charge("r", 1, b"4" * 32, SECOND, b"")  # the first charge of a round is no repeat
    with pytest.raises(TooManyAborts):
        book.charge("r", 1, b"5" * 32, SECOND, b"")


def test_a_repeat_needs_budget_beyond_what_is_reserved():
    book = ledger(epsilon=gdp_epsilon(math.sqrt(5 / 64), 1e-5) * 1.0001)
    book.reserve("r", SPEC, SCHEDULE)
    book.charge("r", 0, PLAN, FIRST, b"x")
    with pytest.raises(BudgetExhausted, match="once more"):
        book.charge("r", 0, OTHER, FIRST, b"y")
    book.charge("r", 1, PLAN, SECOND, b"z")  # what was reserved still stands


@pytest.mark.parametrize(
    ("run", "index", "release"),
    [("unknown", 0, FIRST), ("r", 1, FIRST), ("r", 2, FIRST), ("r", -1, SECOND), ("r", 0, replace(FIRST, clip_norm=2))],
)
def test_what_was_not_reserved_is_not_charged(run, index, release):
    book = ledger()
    book.reserve("r", SPEC, SCHEDULE)
    with pytest.raises(RoundRefused):
        book.charge(run, index, PLAN, release, b"x")
    assert len(book.entries()) == 2


def test_a_finished_run_charges_and_keeps_nothing_more():
    book = ledger()
    book.reserve("r", SPEC, SCHEDULE)
    book.charge("r", 0, PLAN, FIRST, b"x")
    book.finish("r")
    book.finish("r")
    assert [entry.kind for entry in book.entries()].count(Kind.FINISH) == 1
    assert book.stored("r", 0, PLAN) is None
    with pytest.raises(RoundRefused, match="finished"):
        book.charge("r", 1, PLAN, SECOND, b"y")
    with pytest.raises(RoundRefused, match="finished"):
        book.reserve("r", SPEC, SCHEDULE)
    with pytest.raises(RoundRefused, match="never"):
        book.finish("unknown")


def test_a_ledger_outlives_the_process_and_other_shops_ledgers_in_its_file(tmp_path):
    for shop, sigma in (("north", 8.0), ("south", 4.0)):
        book = ledger(place=tmp_path / "ledger.db", shop=shop)
        release = PlannedRelease("popularity", 1.0, sigma)
        book.reserve("r", SPEC, (release,))
        book.charge("r", 0, PLAN, release, shop.encode())
        book.close()
    north = Ledger.open(tmp_path / "ledger.db", "north", clock=Clock())
    south = Ledger.open(f"sqlite:///{tmp_path}/ledger.db", "south", clock=Clock())
    assert (north.head().spent.gdp, south.head().spent.gdp) == (1 / 64, 1 / 16)
    assert (north.stored("r", 0, PLAN).payload, south.stored("r", 0, PLAN).payload) == (b"north", b"south")


def test_two_open_ledgers_see_each_others_entries(tmp_path):
    one, two = (ledger(epsilon=1.5, place=tmp_path / "ledger.db") for _ in range(2))
    one.reserve("r", SPEC, SCHEDULE)
    two.charge("r", 0, PLAN, FIRST, b"x")
    assert one.stored("r", 0, PLAN).payload == b"x"
    with pytest.raises(BudgetExhausted):
        two.reserve("other", SPEC, SCHEDULE)


def test_a_budget_is_given_once(tmp_path):
    with pytest.raises(ConfigError, match="no privacy ledger"):
        Ledger.open(tmp_path / "ledger.db", "north", clock=Clock())
    ledger(place=tmp_path / "ledger.db")
    assert Ledger.open(tmp_path / "ledger.db", "north", clock=Clock()).budget == Budget(3.0, 1e-5)
    with pytest.raises(ConfigError, match="cannot be changed"):
        ledger(epsilon=4.0, place=tmp_path / "ledger.db")


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"epsilon": 0, "delta": 1e-5}, BadEpsilon),
        ({"epsilon": math.nan, "delta": 1e-5}, BadEpsilon),
        ({"epsilon": math.inf, "delta": 1e-5}, BadEpsilon),
        ({"epsilon": 1, "delta": 0}, BadDelta),
        ({"epsilon": 1, "delta": math.nan}, BadDelta),
        ({"epsilon": 1, "delta": 1e-5, "period": "month"}, PrivacyError),
        ({"epsilon": 1, "delta": 1e-5, "max_aborts": -1}, PrivacyError),
    ],
    ids=str,
)
def test_a_budget_that_is_none_is_refused(fields, error):
    with pytest.raises(error):
        Budget(**fields)


@pytest.mark.parametrize("place", ["nonsense://x", "postgresql+nodriver://host/name"])
def test_a_url_that_leads_nowhere_is_refused(place):
    with pytest.raises(ConfigError):
        ledger(place=place)


def test_a_sampled_run_is_counted_by_the_renyi_filter():
    book = ledger(epsilon=8.0)
    sampled = (PlannedRelease("step", 1.0, 2.0, 0.5),) * 3
    book.reserve("r", SPEC, sampled)
    book.charge("r", 0, PLAN, sampled[0], b"x")
    assert book.spent().counting is Counting.RENYI
    assert book.head().spent.gdp == math.inf
    assert Head.from_bytes(book.head().to_bytes()) == book.head()
    assert 0 < book.spent().epsilon < 8
    book.reserve("exact", SPEC, (PlannedRelease("gram", 1.0, 8.0),))  # joins the filter that is at work
    assert book.spent().counting is Counting.RENYI


def test_a_periods_only_run_may_take_the_accountants_smaller_figure_and_then_nothing_else_fits():
    schedule = (PlannedRelease("step", 1.0, 1.5, 0.1),) * 50
    exact = accounting.epsilon(schedule, 1e-5)
    by_filter = RenyiFilter(1.0, 1e-5, best_order(1.2 * exact, 1e-5))
    assert exact * 1.02 < by_filter.epsilon(by_filter.cost(schedule), 1e-5)
    book = ledger(epsilon=1.02 * exact)
    book.reserve("only", SPEC, schedule)
    book.charge("only", 0, PLAN, schedule[0], b"x")
    spent = book.spent()
    assert spent.counting is Counting.FIXED
    assert spent.committed_epsilon == pytest.approx(exact)
    assert spent.lifetime_epsilon == spent.epsilon == pytest.approx(accounting.epsilon(schedule[:1], 1e-5))
    with pytest.raises(BudgetExhausted):
        book.charge("only", 0, OTHER, schedule[0], b"x")
    book.finish("only")
    with pytest.raises(BudgetExhausted, match="whole period"):
        book.reserve("tiny", SPEC, (PlannedRelease("step", 1.0, 1000.0),))
    with pytest.raises(BudgetExhausted):
        ledger(epsilon=0.98 * exact).reserve("only", SPEC, schedule)


def test_the_kind_of_filter_does_not_change_once_something_was_released():
    book = ledger(epsilon=8.0)
    book.reserve("r", SPEC, SCHEDULE)
    sampled = (PlannedRelease("step", 1.0, 20.0, 0.01),)
    with pytest.raises(BudgetExhausted, match="first of its period"):
        book.reserve("sampled", SPEC, sampled)
    book.finish("r")  # nothing was released: the period is as new
    book.reserve("sampled", SPEC, sampled)


@pytest.mark.parametrize(("spec", "seeded"), [(replace(SPEC, is_benchmark=True), False), (SPEC, True)])
def test_a_run_without_a_deployable_guarantee_marks_the_ledger(spec, seeded):
    book = ledger()
    assert book.spent().is_deployable
    book.reserve("r", spec, SCHEDULE, is_noise_seeded=seeded)
    assert not book.spent().is_deployable


def test_what_sampling_adds_to_delta_is_taken_from_the_budget():
    epsilon = gdp_epsilon(math.sqrt(5 / 64), 1e-5) * 1.0001
    ledger(epsilon=epsilon).reserve("r", SPEC, SCHEDULE)
    with pytest.raises(BudgetExhausted):
        ledger(epsilon=epsilon).reserve("r", SPEC, SCHEDULE, residual_delta=5e-6)


def test_a_clock_behind_the_last_entry_stops_every_release():
    clock = Clock()
    book = ledger(clock=clock)
    book.reserve("r", SPEC, SCHEDULE)
    book.charge("r", 0, PLAN, FIRST, b"x")
    clock.now -= timedelta(seconds=4)
    book.charge("r", 1, PLAN, SECOND, b"y")  # a time server's step
    assert book.entries()[-1].utc == book.entries()[-2].utc
    clock.now -= timedelta(seconds=2)
    for call in (
        lambda: book.reserve("new", SPEC, SCHEDULE),
        lambda: book.charge("r", 0, OTHER, FIRST, b"z"),
        lambda: book.stored("r", 0, PLAN),
    ):
        with pytest.raises(ClockWentBack, match="2026-01-01 00:00:00"):
            call()
    assert book.spent().num_charges == 2  # reading is allowed


def test_a_clock_that_had_run_ahead_is_put_right_by_an_entry_and_gains_at_most_31_days(tmp_path):
    clock = Clock()
    book = ledger(clock=clock, place=tmp_path / "ledger.db", period="year")
    clock.now += timedelta(days=3650)
    book.note_time()
    clock.now -= timedelta(days=3649)
    book = Ledger.open(tmp_path / "ledger.db", "north", clock=clock)
    with pytest.raises(ClockWentBack):
        book.reserve("r", SPEC, SCHEDULE)
    book.note_time(is_clock_corrected=True)
    assert book.entries()[-1].what["behind_s"] == 3649 * 86400
    book.reserve("r", SPEC, SCHEDULE)
    assert book.verify().time == timedelta(days=31)


def run_once(book, name):
    book.reserve(name, SPEC, SCHEDULE)
    for index, release in enumerate(SCHEDULE):
        book.charge(name, index, PLAN, release, b"x")
    book.finish(name)


def test_a_jump_of_the_clock_mints_no_budget():
    clock = Clock()
    book = ledger(epsilon=1.5, clock=clock, period="year")
    run_once(book, "2026")
    clock.now += timedelta(days=366)
    with pytest.raises(BudgetExhausted):
        book.reserve("2027", SPEC, SCHEDULE)
    with pytest.raises(BudgetExhausted, match="31 days of ledger time"):
        book.start_year()


def test_a_year_of_entries_begins_a_new_budget_and_the_lifetime_goes_on():
    clock = Clock()
    book = ledger(epsilon=1.5, clock=clock, period="year")
    run_once(book, "first")
    for _ in range(12):
        clock.now += timedelta(days=30)
        book.note_time()
    with pytest.raises(BudgetExhausted, match="360 days"):
        book.start_year()
    clock.now += timedelta(days=5)
    with pytest.raises(BudgetExhausted):
        book.reserve("second", SPEC, SCHEDULE)  # never by itself
    book.start_year()
    run_once(book, "second")
    spent = book.spent()
    assert (spent.years, spent.num_charges) == (2, 4)
    assert spent.period_costs.gdp == pytest.approx(5 / 64)
    assert spent.lifetime_costs.gdp == pytest.approx(10 / 64)
    assert spent.lifetime_epsilon == pytest.approx(gdp_epsilon(math.sqrt(10 / 64), 1e-5), rel=1e-6)
    with pytest.raises(BudgetExhausted):
        book.start_year()
    book.verify()


def test_a_year_does_not_begin_in_the_middle_of_a_run_or_a_lifetime():
    clock = Clock()
    book = ledger(clock=clock, period="year")
    book.reserve("r", SPEC, SCHEDULE)
    with pytest.raises(RoundRefused, match="unfinished"):
        book.start_year()
    with pytest.raises(ConfigError, match="lifetime"):
        ledger().start_year()


def test_nothing_that_is_printed_shows_bytes_or_passwords():
    book = ledger()
    book.reserve("r", SPEC, SCHEDULE)
    book.charge("r", 0, PLAN, FIRST, b"SECRETBYTES")
    shown = [repr(book), repr(book.stored("r", 0, PLAN)), repr(book.entries()), repr(book.head()), repr(book.spent())]
    assert not any("SECRET" in text for text in shown)
    with pytest.raises(ConfigError) as refused:
        ledger(place="postgresql+nodriver://user:hunter2@host/name")
    assert "hunter2" not in str(refused.value)


@settings(max_examples=25, deadline=None)
@given(
    epsilon=st.floats(0.5, 4),
    wishes=st.lists(
        st.tuples(st.integers(1, 3), st.floats(1.5, 12), st.integers(0, 3), st.booleans()), min_size=1, max_size=8
    ),
)
def test_whatever_runs_ask_for_the_budget_holds(epsilon, wishes):
    """Runs of any size, cut short or repeated: what is charged never exceeds the budget."""
    book = ledger(epsilon=epsilon)
    for number, (rounds, sigma, charged, finishes) in enumerate(wishes):
        schedule = (PlannedRelease("gram", 1.0, sigma),) * rounds
        try:
            book.reserve(f"run-{number}", SPEC, schedule)
            for step in range(charged):
                book.charge(f"run-{number}", step % rounds, bytes([step]) * 32, schedule[0], b"x")
        except (BudgetExhausted, TooManyAborts):
            pass
        if finishes and number > 0 and f"run-{number}" in book.verify().runs:
            book.finish(f"run-{number}")
        assert gdp_epsilon(math.sqrt(max(book.spent().period_costs.gdp, 1e-9)), 1e-5) <= epsilon * (1 + 1e-6)
    assert book.verify().spent == book.spent().period_costs


def test_costs_since_a_point_are_never_below_zero():
    assert Costs(3.0, 2.0).since(Costs(1.0, 3.0)) == Costs(2.0, 0.0)
    assert Costs(math.inf, 2.0).since(Costs(math.inf, 1.0)) == Costs(math.inf, 1.0)
