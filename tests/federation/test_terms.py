from dataclasses import replace

import pytest

from fedrec.errors import BadAssumption, ConfigError, RoundRefused
from fedrec.federation.terms import Protection, Terms
from fedrec.models.recommender import Layout, RoundKind, RoundSpec
from fedrec.privacy.mechanisms import PlannedRelease
from fedrec.privacy.spec import Mode, PrivacySpec

SPEC = PrivacySpec(
    epsilon=3,
    delta=1e-5,
    mode=Mode.DISTRIBUTED,
    public_shoppers=1000,
    max_shoppers=2000,
    min_shops=3,
    colluders=1,
)
SCHEDULE = (PlannedRelease("popularity", 1.0, 6.0), PlannedRelease("co-occurrence", 2.0, 2.0))
TERMS = Terms(("a", "b", "c", "d"), min_shops=3, run_id="r", privacy=SPEC, schedule=SCHEDULE)


def round_spec(name="popularity", kind=RoundKind.STATISTICS):
    return RoundSpec(kind, name, Layout((("popularity", (3,)),)))


def test_terms_survive_their_json():
    assert Terms.from_json(TERMS.to_json()) == TERMS
    assert Terms.from_json(Terms(("a",)).to_json()) == Terms(("a",))


@pytest.mark.parametrize(
    "change",
    [
        {"roster": ()},
        {"roster": ("a", "a", "b")},
        {"min_shops": 0},
        {"min_shops": 5},
        {"schedule": ()},
        {"privacy": None},
        {"clip_norm": 1.0},
    ],
    ids=str,
)
def test_terms_that_make_no_sense_are_refused(change):
    with pytest.raises(ConfigError):
        replace(TERMS, **change)


def test_noise_made_for_another_number_of_shops_is_refused():
    with pytest.raises(BadAssumption):
        replace(TERMS, min_shops=4)


def test_a_shop_adds_its_share_of_the_noise():
    # sigma 6 of the clip norm 1 on a grid of 2^-18, shared by 3 - 1 honest shops
    assert TERMS.shop_noise_units(0) == pytest.approx(6 * 2**18 / 2**0.5)
    local = replace(TERMS, privacy=replace(SPEC, mode=Mode.LOCAL))
    assert local.shop_noise_units(0) == pytest.approx(6 * 2**18)


def test_the_noise_of_a_sum_grows_with_the_shops_that_took_part():
    assert TERMS.noise_sd(1, 2) == pytest.approx(2 * 2)
    assert TERMS.noise_sd(1, 4) == pytest.approx(2 * 2 * 2**0.5)
    assert Terms(("a",)).noise_sd(0, 1) == 0


def test_a_person_with_accounts_in_two_shops_has_half_the_bound_in_each():
    assert replace(TERMS, privacy=replace(SPEC, max_shops_per_person=2)).shopper_bound(1) == 1.0
    assert TERMS.shopper_bound(1) == 2.0


@pytest.mark.parametrize(
    ("spec", "index"),
    [
        (round_spec("co-occurrence"), 0),
        (round_spec(), 2),
        (round_spec(kind=RoundKind.LOCAL_UPDATE), 0),
    ],
    ids=["another name", "after the schedule", "local update"],
)
def test_rounds_that_were_not_agreed_are_refused(spec, index):
    with pytest.raises(RoundRefused):
        TERMS.allow(spec, index)


def test_rounds_on_the_schedule_are_allowed():
    assert TERMS.allow(round_spec(), 0) == SCHEDULE[0]


def test_a_distributed_run_without_masks_says_who_is_not_kept_out():
    assert TERMS.protection is Protection.DISTRIBUTED
    assert "not against the coordinator" in TERMS.guarantee
    assert "epsilon 3, delta 1e-05" in TERMS.guarantee


def test_a_benchmark_says_that_its_guarantee_is_not_deployable():
    benchmark = replace(SPEC, colluders=0, is_benchmark=True)
    assert "not a deployable guarantee" in replace(TERMS, privacy=benchmark).guarantee
