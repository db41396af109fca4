from dataclasses import replace

import pytest

from fedrec.errors import BadAssumption
from fedrec.privacy.accounting import epsilon, exact_epsilon, gdp_mu
from fedrec.privacy.calibration import calibrate
from fedrec.privacy.mechanisms import ReleaseRequest, outlook, residual_delta, sum_noise_sd
from fedrec.privacy.spec import Mode, PrivacySpec

SPEC = PrivacySpec(
    epsilon=2.0, delta=1e-5, mode=Mode.DISTRIBUTED, public_shoppers=6000, max_shoppers=10_000, min_shops=8, colluders=1
)
REQUESTS = (ReleaseRequest("popularity", 0.1, 1.0), ReleaseRequest("co-occurrence", 0.9, 1.0))


@pytest.mark.parametrize("promised", [0.1, 0.5, 1, 2, 4, 8, 20])
def test_the_promise_is_kept_and_hardly_more(promised):
    spec = replace(SPEC, epsilon=promised)
    schedule = calibrate(REQUESTS, spec)
    spent = epsilon(schedule, spec.delta - residual_delta(spec))
    assert 0.998 * promised - 2e-3 <= spent <= promised
    assert exact_epsilon(gdp_mu(schedule), spec.delta) <= promised


def test_the_budget_is_split_as_asked():
    popularity, pairs = calibrate(REQUESTS, SPEC)
    assert (popularity.name, pairs.name) == ("popularity", "co-occurrence")
    assert (popularity.noise_multiplier / pairs.noise_multiplier) ** 2 == pytest.approx(9)


def test_one_sum_gets_the_analytic_noise():
    (release,) = calibrate((ReleaseRequest("sum", 1.0, 3.0),), SPEC)
    assert release.noise_multiplier == pytest.approx(1.99, abs=0.005)
    assert release.clip_norm == 3.0


def test_repeats_are_rounds_of_their_own_and_sampling_needs_less_noise():
    asked = ReleaseRequest("step", 1.0, 1.0, repeats=100)
    whole = calibrate((asked,), SPEC)
    sampled = calibrate((replace(asked, sampling_rate=0.1),), SPEC)
    assert len(whole) == 100
    assert whole[0].noise_multiplier == pytest.approx(19.9, abs=0.05)
    assert sampled[0].noise_multiplier < 0.2 * whole[0].noise_multiplier


def test_the_outlook_tells_the_noise_of_the_whole_sum():
    schedule = calibrate(REQUESTS, SPEC)
    seen = outlook(schedule, SPEC, 10)
    assert seen.public_shoppers == 6000
    # ten shops add a share of 1 / sqrt(8 - 1) each
    assert seen.noise_sds[1] == pytest.approx(schedule[1].noise_multiplier * (10 / 7) ** 0.5)
    assert sum_noise_sd(schedule[1], replace(SPEC, mode=Mode.LOCAL), 10) == pytest.approx(
        schedule[1].noise_multiplier * 10**0.5
    )


@pytest.mark.parametrize(
    "change",
    [{"share": 0.0}, {"share": float("nan")}, {"clip_norm": -1.0}, {"sampling_rate": 0.0}, {"repeats": 0}],
    ids=str,
)
def test_requests_that_make_no_sense_are_refused(change):
    with pytest.raises(BadAssumption):
        replace(REQUESTS[0], **change)


def test_nothing_to_calibrate_is_refused():
    with pytest.raises(BadAssumption):
        calibrate((), SPEC)
