"""The audit of steps that a shop takes by itself passes this build and catches broken ones."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import pytest
from scipy import sparse

from fedrec.privacy.noise import SecureNoise
from fedrec.simulation.audit import audit_shoppers
from fedrec.simulation.audit_claim import AuditSettings
from fedrec.simulation.audit_local import audit_local_noise, steps_in_shops
from fedrec.simulation.crafted import CraftedSteps, RowSums

CLAIM = AuditSettings(epsilon=2.0, delta=1e-6, canaries=40_000, num_items=200)


class Loud(RowSums):
    """Forgets to clip."""

    def clipped(self, bound: float) -> tuple[np.ndarray, np.ndarray]:
        norms = self.norms()
        return self.total(np.ones(len(norms))), norms


@dataclass(frozen=True)
class SkipsClip(CraftedSteps):
    def gradients(self, spec, histories, draws):
        return Loud(super().gradients(spec, histories, draws).rows)


@dataclass(frozen=True)
class ShopWide(CraftedSteps):
    """Weighs items by the shop's own raw popularity in every step."""

    name: ClassVar[str] = "shop-wide"

    def gradients(self, spec, histories, draws):
        weights = 1 / np.maximum(np.asarray(histories.sum(axis=0)).ravel(), 1)
        return RowSums(sparse.csr_matrix(histories.multiply(weights), dtype=np.float64))

    def private(self, outlook, public):
        return self


def scaled(part):
    class Scaled(SecureNoise):
        def integers(self, sd_units, size):
            return np.rint(part * super().integers(sd_units, size)).astype(np.int64)

    return Scaled


@pytest.mark.parametrize("epsilon", [0.5, 8.0])
def test_the_steps_of_a_shop_show_the_epsilon_in_its_ledger(epsilon):
    finding = audit_local_noise(replace(CLAIM, epsilon=epsilon), model=CraftedSteps(factor=100.0))
    assert finding.is_passed, finding
    assert finding.figures["epsilon_claimed"] == pytest.approx(epsilon, rel=1e-3)  # what the ledger says was spent
    # the standard error of mu is at most 0.022: a false alarm is a 6-sigma event
    assert finding.figures["mu_estimate"] == pytest.approx(finding.figures["mu_claimed"], abs=6 * 0.022)


@pytest.mark.parametrize(
    ("broken", "verdict"), [(0.0, "less noise"), (3**-0.5, "less noise"), (0.7, "less noise"), (1.5, "more noise")]
)
def test_wrong_noise_in_the_steps_is_caught(broken, verdict):
    """Of 3 steps, 3^-0.5 is noise for their sum in place of noise for each."""
    finding = audit_local_noise(CLAIM, make_noise=scaled(broken))
    assert finding.is_passed is False
    assert finding.verdict == f"{verdict} than claimed"


def test_steps_that_forget_the_clip_are_caught():
    finding = audit_local_noise(CLAIM, model=SkipsClip(factor=2.0))
    assert (finding.is_passed, finding.verdict) == (False, "less noise than claimed")


def test_no_crafted_shopper_moves_a_step_too_far():
    finding = audit_shoppers(CLAIM, steps_in_shops())
    assert finding.is_passed, finding
    steps = {place: moved for place, moved in finding.figures["moved"].items() if "step" in place}
    assert {place.partition(":")[0] for place in steps} == {
        f"{index} local steps, step {number}" for index in (2, 3) for number in (0, 1)
    }
    assert max(steps.values()) > 0.99


def test_a_step_that_is_more_than_its_shoppers_is_caught():
    finding = audit_shoppers(CLAIM, ShopWide())
    assert finding.is_passed is False
    assert "moved too far by" in finding.verdict
