"""What a promise would cost, before any data is touched: noise, its split, and how much of the gain to expect.

Everything here follows from public numbers. The expectation is a rule read off published runs on one public data set;
it tells orders of magnitude apart, not models.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from fedrec.errors import BadAssumption, PrivacyError
from fedrec.models.private_rules import popularity_share
from fedrec.privacy.calibration import calibrate
from fedrec.privacy.mechanisms import ReleaseRequest, Schedule, residual_delta, sum_noise_sd
from fedrec.privacy.settings import PrivacySettings
from fedrec.privacy.spec import MOST_EPSILON, Mode, PrivacySpec
from fedrec.reports.privacy_figures import ACCOUNTS, epsilon_of_person, odds

RELEASED_ITEMS = 300
"""Width of the sum for which `_GAINS` was read off."""

_GAINS = (
    (6.3, 0.0),
    (11.7, 0.06),
    (20.0, 0.18),
    (37.0, 0.32),
    (65.0, 0.46),
    (120.0, 0.57),
    (217.0, 0.72),
    (390.0, 0.77),
)
"""Shoppers over the noise edge -> part of the gain over popularity that is left, without the help of item texts."""

SOURCE = (
    "Expectation: shoppers over the noise edge √2 · σ · √K of the strongest sum (K = 300 items), read off private "
    "co-occurrence on MovieLens-1M (NDCG@10: popularity .187, no privacy .404): 6,039 shoppers at ε 1, 2, 4, 8, the "
    "same with every shop adding all the noise, and one shop of 604 alone. Item texts add about what twice the ε does. "
    "Shoppers with fewer events than there (138 on average) give a weaker signal."
)


@dataclass(frozen=True)
class Question:
    """What somebody wants to know.

    Attributes:
        settings: epsilon, delta, mode and what is assumed of shops.
        rounds: noisy sums of the run; with more than one, the first is popularity; >= 1.
        shoppers: of the whole federation, as declared; >= 1.
        shops: that take part; >= 1.
        items: of the catalogue; the sum covers the `RELEASED_ITEMS` most popular of them; >= 2.
    """

    settings: PrivacySettings
    rounds: int
    shoppers: int
    shops: int
    items: int = RELEASED_ITEMS

    def __post_init__(self) -> None:
        for name, least in (("rounds", 1), ("shoppers", 1), ("shops", 1), ("items", 2)):
            if not getattr(self, name) >= least:
                raise BadAssumption(f"{name} = {getattr(self, name)}: give a whole number of at least {least}")

    @property
    def spec(self) -> PrivacySpec:
        """The promise; the shoppers count as declared, as they are given."""
        declared = dataclasses.replace(self.settings, public_shoppers=self.shoppers, max_shoppers=self.shoppers)
        return declared.spec(declared.epsilons[0], num_shops=self.shops, num_shoppers=self.shoppers)


@dataclass(frozen=True)
class Sum:
    """One kind of noisy sum of a plan; noise as standard deviations over the clip norm.

    Attributes:
        name, repeats: which rounds.
        share: of the budget, all repeats together.
        sigma: the noise that the promise needs.
        of_each_shop: what every shop adds.
        of_the_sum: in the sum, if all shops take part.
    """

    name: str
    repeats: int
    share: float
    sigma: float
    of_each_shop: float
    of_the_sum: float


@dataclass(frozen=True)
class Expectation:
    """How useful a run may be.

    Attributes:
        ratio: shoppers over the noise edge of the strongest sum.
        gain: expected part of what a model without privacy gains over popularity.
        usefulness: the same in words.
    """

    ratio: float
    gain: float
    usefulness: str


@dataclass(frozen=True)
class Answer:
    """A plan.

    Attributes:
        spec: the promise.
        sums: the split of the budget.
        epsilon_by_accounts: of a person with one, two, three accounts.
        right_of_coin, found_at_one_percent: an attacker's best odds.
        expectation: how useful the run may be.
    """

    spec: PrivacySpec
    sums: tuple[Sum, ...]
    epsilon_by_accounts: dict[int, float]
    right_of_coin: float
    found_at_one_percent: float
    expectation: Expectation


def largest_delta(shoppers: int) -> float:
    """The largest delta that so many shoppers allow.

    Raises:
        BadAssumption: fewer than one.
    """
    if not shoppers >= 1:
        raise BadAssumption(f"shoppers = {shoppers}: give a whole number of at least 1")
    return 1 / (10 * shoppers)


def answer(question: Question) -> Answer:
    """The plan for a question.

    Raises:
        PrivacyError: no such promise can be made.
    """
    spec = question.spec
    requests = _requests(question, spec)
    schedule = calibrate(requests, spec)
    most = spec.max_shops_per_person
    found = odds(schedule)
    return Answer(
        spec=spec,
        sums=tuple(_sums(requests, schedule, spec, question.shops)),
        epsilon_by_accounts={
            k: epsilon_of_person(schedule, spec.delta - residual_delta(spec), k, most) for k in ACCOUNTS
        },
        right_of_coin=found["right_of_coin"],
        found_at_one_percent=found["found_at_one_percent"],
        expectation=_expect(question, spec, schedule),
    )


def alternatives(question: Question) -> list[tuple[str, Expectation, float]]:
    """What else could be done: in words, what to expect, and the delta it takes; the question itself first."""
    rows = []
    for name, other in _others(question):
        spec = other.spec
        rows.append((name, _expect(other, spec, calibrate(_requests(other, spec), spec)), spec.delta))
    return rows


def expected_gain(ratio: float) -> float:
    """Part of the non-private gain over popularity; between the known runs by the logarithm of the ratio."""
    known = np.array(_GAINS)
    return float(np.interp(math.log(ratio), np.log(known[:, 0]), known[:, 1]))


def usefulness(gain: float) -> str:
    """The same in words."""
    if gain < 0.05:
        return "popularity only"
    if gain < 0.25:
        return "strongest tastes"
    return "up to half of the gain" if gain < 0.5 else "most of the gain"


def _requests(question: Question, spec: PrivacySpec) -> tuple[ReleaseRequest, ...]:
    """As private models split a budget: popularity picks the items, the other rounds share the rest evenly."""
    whole = ReleaseRequest("statistics", 1.0, clip_norm=1.0)
    if question.rounds == 1:
        return (whole,)
    share = popularity_share(spec.public_shoppers / sum_noise_sd(calibrate((whole,), spec)[0], spec, question.shops))
    rest = (1 - share) / (question.rounds - 1)
    return (
        ReleaseRequest("popularity", share, clip_norm=1.0),
        ReleaseRequest("statistics", rest, clip_norm=1.0, repeats=question.rounds - 1),
    )


def _sums(requests: Iterable[ReleaseRequest], schedule: Schedule, spec: PrivacySpec, num_shops: int) -> Iterable[Sum]:
    for request in requests:
        release = next(one for one in schedule if one.name == request.name)
        yield Sum(
            name=request.name,
            repeats=request.repeats,
            share=request.share * request.repeats,
            sigma=release.noise_multiplier,
            of_each_shop=release.noise_multiplier / spec.noise_divisor,
            of_the_sum=sum_noise_sd(release, spec, num_shops),
        )


def _expect(question: Question, spec: PrivacySpec, schedule: Schedule) -> Expectation:
    noise = min(sum_noise_sd(release, spec, question.shops) / release.clip_norm for release in schedule)
    width = min(question.items, RELEASED_ITEMS)
    # Contributions are clipped to C / k, which makes the signal smaller by k.
    signal = question.shoppers / spec.max_shops_per_person
    ratio = signal / (math.sqrt(2 * width) * noise)
    gain = expected_gain(ratio)
    return Expectation(ratio, gain, usefulness(gain))


def _others(question: Question) -> Iterable[tuple[str, Question]]:
    yield "as asked", question
    for times in (2, 10):
        yield f"{times} times the shoppers", _with_shoppers(question, times * question.shoppers)
    for rounds in (2, 1):
        if rounds < question.rounds:
            yield f"{rounds} {'round' if rounds == 1 else 'rounds'}", dataclasses.replace(question, rounds=rounds)
    settings = question.settings
    other = Mode.LOCAL if settings.mode is Mode.DISTRIBUTED else Mode.DISTRIBUTED
    changed = _other_mode(question, other)
    if changed is not None:
        yield f"mode {other}", changed
    if (more := 2 * settings.epsilons[0]) <= MOST_EPSILON:
        double = dataclasses.replace(settings, epsilon=more)
        yield f"ε {more:g}", dataclasses.replace(question, settings=double)


def _with_shoppers(question: Question, shoppers: int) -> Question:
    """More shoppers, with the smaller delta that they may ask for."""
    delta = question.settings.delta
    assert delta is not None  # settings with an epsilon have one
    settings = dataclasses.replace(question.settings, delta=min(delta, largest_delta(shoppers)))
    return dataclasses.replace(question, settings=settings, shoppers=shoppers)


def _other_mode(question: Question, mode: Mode) -> Question | None:
    """The same in the other mode; None where so few shops cannot share noise."""
    settings = dataclasses.replace(question.settings, mode=mode, min_shops=None)
    changed = dataclasses.replace(question, settings=settings)
    try:
        _ = changed.spec
    except PrivacyError:
        return None
    return changed
