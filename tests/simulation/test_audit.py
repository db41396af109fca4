"""The audit passes this build and catches broken ones; each is broken where a real fault would be."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import pytest
from scipy import sparse

from fedrec.errors import BadAssumption, NoPrivateVariant, TooFewHonestShops
from fedrec.models.popularity import ItemCounts, Popularity, PrivatePopularity, binary_rows
from fedrec.privacy.noise import SecureNoise, SeededNoiseForTests
from fedrec.privacy.spec import Mode
from fedrec.simulation import audit
from fedrec.simulation.audit_claim import AuditSettings, Finding
from fedrec.simulation.audit_serving import audit_lists
from fedrec.simulation.crafted import Crafted, RowSums

CLAIM = AuditSettings(epsilon=2.0, delta=1e-6, canaries=20_000, num_items=500, num_shops=6, min_shops=5)


class Scaled(SecureNoise):
    """Real noise, some part of it."""

    part = 1.0

    def integers(self, sd_units: float, size: int) -> np.ndarray:
        return np.rint(self.part * super().integers(sd_units, size)).astype(np.int64)


class Off(Scaled):
    part = 0.0


class ForgottenShares(Scaled):
    part = 10**-0.5


class SevenTenths(Scaled):
    part = 0.7


class Half(Scaled):
    part = 1.5


class SameTwice(SeededNoiseForTests):
    """A seed that somebody wrote into a configuration file."""

    def __init__(self, purpose: str) -> None:
        super().__init__(42)


class SameForAllShops(SeededNoiseForTests):
    """A seed for each round that all shops share."""

    def __init__(self, purpose: str) -> None:
        super().__init__(42, purpose)


@pytest.mark.parametrize("mode", list(Mode))
@pytest.mark.parametrize("epsilon", [0.5, 8.0])
def test_the_real_noise_shows_the_epsilon_claimed(mode, epsilon):
    finding = audit.audit_noise(replace(CLAIM, mode=mode, epsilon=epsilon))
    assert finding.is_passed, finding
    # the standard error of mu is at most 0.016: a false alarm is a 6-sigma event
    assert finding.figures["mu_estimate"] == pytest.approx(finding.figures["mu_claimed"], abs=6 * 0.016)
    # a bound at 95 %: at epsilon 0.5 once in 300 runs above epsilon, and once in 10^8 above twice as much
    assert finding.figures["epsilon_one_run_bound"] <= 2 * epsilon


@pytest.mark.parametrize(
    ("broken", "verdict"),
    [
        (Off, "less noise than claimed"),
        (ForgottenShares, "less noise than claimed"),
        (SevenTenths, "less noise than claimed"),
        (Half, "more noise than claimed"),
    ],
)
def test_wrong_noise_is_caught_by_crafted_vectors(broken, verdict):
    finding = audit.audit_noise(CLAIM, make_noise=broken)
    assert finding.is_passed is False
    assert finding.verdict == verdict


def test_noise_so_small_that_it_is_certain_passes_the_rigorous_bound_too():
    assert audit.audit_noise(CLAIM, make_noise=ForgottenShares).figures["epsilon_one_run_bound"] > CLAIM.epsilon


def test_one_colluder_more_than_the_noise_was_made_for_is_noticed():
    # The terms plan for one; the attacker's view subtracts three.
    terms = audit._terms(CLAIM, CLAIM.spec(max_shoppers=20_000), Crafted())
    greedy = replace(CLAIM, colluders=3)
    canaries = sparse.identity(CLAIM.canaries, np.float32, format="csr")[: CLAIM.canaries // 2]
    state, known = audit._attackers_view(greedy, terms, Crafted(), canaries, SecureNoise)
    left = state["second"] - known["second"]
    sd = left[CLAIM.canaries // 2 :].std()
    assert sd == pytest.approx(terms.schedule[1].noise_multiplier * np.sqrt(2 / 4), rel=0.05)  # 10,000 values: 7 sd


def test_equal_data_differ_by_independent_noise():
    for finding in audit.audit_equal_data(CLAIM):
        assert finding.is_passed, finding


@pytest.mark.parametrize("broken", [Off, ForgottenShares, SevenTenths, Half])
def test_wrong_noise_is_caught_between_equal_data(broken):
    assert [finding.is_passed for finding in audit.audit_equal_data(CLAIM, make_noise=broken)] == [False, False]


def test_the_same_noise_twice_is_caught():
    rounds, shops = audit.audit_equal_data(CLAIM, make_noise=SameTwice)
    assert rounds.verdict == shops.verdict == "no noise, or the same twice"
    rounds, shops = audit.audit_equal_data(CLAIM, make_noise=SameForAllShops)
    assert rounds.is_passed
    assert shops.is_passed is False


class Unclipped(RowSums):
    """Forgets the weights that the clip asked for."""

    def integers(self, weights: np.ndarray, scale: float) -> np.ndarray:
        return super().integers(np.ones(len(weights)), scale)


@dataclass(frozen=True)
class SkipsClip(Crafted):
    def contributions(self, spec, histories):
        return Unclipped(super().contributions(spec, histories).rows)


def test_loud_contributions_are_clipped_and_a_skipped_clip_is_caught():
    finding = audit.audit_clip(CLAIM)
    assert finding.is_passed, finding
    assert max(finding.figures["moved"].values()) > 0.999  # the clip is tight: it was the clip that bounded them
    finding = audit.audit_clip(CLAIM, model=SkipsClip())
    assert finding.is_passed is False
    assert max(finding.figures["moved"].values()) > 99


@pytest.mark.parametrize("model", audit.AUDITED_MODELS)
def test_no_crafted_shopper_moves_a_model_too_far(model):
    finding = audit.audit_shoppers(CLAIM, model)
    assert finding.is_passed, finding
    assert max(finding.figures["moved"].values()) > 0.99


@dataclass(frozen=True)
class PerInteraction(PrivatePopularity):
    """Clips each interaction instead of each shopper."""

    name: ClassVar[str] = "per-interaction"

    def contributions(self, spec, histories):
        return _ClippedOneByOne(binary_rows(histories))

    def private(self, outlook, public):
        return self


class _ClippedOneByOne(ItemCounts):
    def norms(self) -> np.ndarray:
        return np.ones(self.rows.shape[0])


@dataclass(frozen=True)
class ShopWide(PrivatePopularity):
    """Weighs items by the shop's own raw popularity before each shopper is scaled to norm 1."""

    name: ClassVar[str] = "shop-wide"

    def contributions(self, spec, histories):
        rows = binary_rows(histories).astype(np.float64)
        counts = np.maximum(np.asarray(rows.sum(axis=0)).ravel(), 1)
        weighted = rows.multiply(1 / counts).tocsr()
        norms = np.sqrt(np.asarray(weighted.multiply(weighted).sum(axis=1)).ravel())
        return RowSums(sparse.diags(1 / norms) @ weighted)

    def private(self, outlook, public):
        return self


@dataclass(frozen=True)
class TableOrder(PrivatePopularity):
    """Gives every shopper a random sign from draws in table order."""

    name: ClassVar[str] = "table-order"

    def contributions(self, spec, histories):
        rows = binary_rows(histories).astype(np.float64)
        signs = np.random.default_rng(0).choice([-1.0, 1.0], rows.shape[0])
        return RowSums(sparse.diags(signs / np.sqrt(np.diff(rows.indptr))) @ rows)

    def private(self, outlook, public):
        return self


@pytest.mark.parametrize("broken", [PerInteraction(), ShopWide(), TableOrder()], ids=lambda model: model.name)
def test_a_contribution_that_is_more_than_one_shoppers_is_caught(broken):
    finding = audit.audit_shoppers(CLAIM, broken)
    assert finding.is_passed is False
    assert "moved too far by" in finding.verdict


def test_the_crafted_shoppers_are_in_the_events_as_described():
    events = audit.crafted_events(CLAIM)
    rows = audit.histories(events, audit.item_positions(CLAIM.num_items))
    lengths = dict(zip(np.unique(events["shopper"]), np.diff(rows.indptr), strict=True))
    assert lengths["crafted-everything"] == CLAIM.num_items
    assert lengths["crafted-one-popular"] == lengths["crafted-one-rare"] == lengths["crafted-repeats"] == 1
    assert (events["shopper"] == "crafted-repeats").sum() == 1000
    assert set(rows.data) == {1.0}


@pytest.mark.slow
def test_lists_from_releases_tell_no_more_than_claimed_and_lists_from_raw_pairs_do():
    # With 640 targets all three verdicts are more than six standard deviations from the other.
    raw, released = audit_lists(CLAIM, trials=32)
    assert raw.is_passed is None
    assert raw.figures["accuracy_low"] > 0.5
    assert released.is_passed, released
    from_own_pairs = {"joint_dp": 0.0}
    (mislabelled,) = audit_lists(replace(CLAIM, epsilon=0.5), trials=32, serving=from_own_pairs)
    assert mislabelled.is_passed is False


def test_models_without_a_private_variant_cannot_be_audited():
    class Plain(Popularity):
        release_requests = None

    with pytest.raises(NoPrivateVariant):
        audit.audit_shoppers(CLAIM, Plain())


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ({"num_shops": 4}, BadAssumption),
        ({"canaries": 10}, BadAssumption),
        ({"num_items": 5}, BadAssumption),
        ({"min_shops": 1}, TooFewHonestShops),
    ],
    ids=str,
)
def test_claims_that_cannot_be_audited_are_refused(wrong, error):
    with pytest.raises(error):
        audit.audit_noise(replace(CLAIM, **wrong))


def test_a_finding_is_passed_failed_or_neither_and_nothing_in_between():
    with pytest.raises(TypeError, match="hide a failure"):
        Finding("noise", "", "", np.False_, "", {})
