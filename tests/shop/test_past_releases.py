"""What a shop says of its past releases when a shopper is erased."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from fedrec.shop.past_releases import PastReleases, past_releases

from .test_adoption import GOOD, judge
from .test_member import agreed, run_rounds
from .town import Town


def test_nothing_has_left_before_the_first_release(town: Town) -> None:
    nothing = PastReleases(0, 0.0, 0.0)
    assert past_releases(town.folder / "ant", "ant") == nothing
    assert str(nothing) == "nothing has left the shop"
    member = town.member()
    member.accept(town.offer().sign(town.key))
    assert past_releases(town.folder / "ant", "ant") == nothing
    member.close()


def test_what_left_under_a_promise_is_bounded_by_the_ledger(town: Town) -> None:
    members = agreed(town, offer := town.offer())
    run_rounds(town, members, offer)
    spent = members[0].ledger().spent()
    for member in members:
        member.close()
    found = past_releases(town.folder / "ant", "ant")
    assert found == PastReleases(spent.num_charges, spent.lifetime_epsilon, spent.budget.delta)
    assert found.epsilon == pytest.approx(2.0, abs=0.2)
    assert f"up to epsilon {found.epsilon:.3g} at delta" in str(found)


def test_sums_that_left_without_a_promise_have_no_bound_for_ever(town: Town) -> None:
    folder = town.folder / "ant"
    town.change("ant", allow_research=True)
    offer = town.offer("open")
    terms = dataclasses.replace(offer.read_terms(), privacy=None, schedule=())
    member = town.member()
    member.accept(dataclasses.replace(offer, terms=terms.to_json()).sign(town.key))
    assert past_releases(folder, "ant").epsilon is None
    member.accept(town.offer("later").sign(town.key))
    member.leave()
    member.close()
    assert past_releases(folder, "ant").epsilon is None
    assert "nothing bounds" in str(past_releases(folder, "ant"))


def test_a_model_without_a_promise_has_no_bound(tmp_path: Path) -> None:
    judge(tmp_path / "models", "run-0", GOOD, mode="none")
    assert past_releases(tmp_path, "ant").epsilon is None
