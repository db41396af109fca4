"""Every limit of a shop's policy refuses the offer that breaks it, and says so in words."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable

import pytest

from fedrec.errors import BadAssumption, ConfigError, FedrecError, RoundRefused
from fedrec.federation.enrolment import Offer, roster_fingerprint
from fedrec.federation.terms import Terms
from fedrec.privacy.mechanisms import PlannedRelease
from fedrec.privacy.spec import Mode, PrivacySpec
from fedrec.secure_aggregation.keys import IdentityKey
from fedrec.secure_aggregation.parameters import Parameters
from fedrec.shop.policy import Policy, check_name

NAMES = ("ant", "bee", "cat", "dog", "elk")
IDENTITIES = {name: IdentityKey.from_bytes(name[:1].encode() * 32) for name in NAMES}
KEYS = {name: key.public for name, key in IDENTITIES.items()}
POLICY = Policy(roster=roster_fingerprint(KEYS), max_rounds=3, max_sampling_rate=0.5)
MODEL = "fedrec.models.popularity:Popularity"


def offer(
    *,
    model: str = MODEL,
    min_shops: int = 4,
    colluders: int = 1,
    noise_colluders: int | None = None,
    epsilon: float = 2.0,
    delta: float = 1e-6,
    is_private: bool = True,
    is_masked: bool = True,
    num_rounds: int = 3,
    sampling_rate: float = 0.5,
    mode: Mode = Mode.DISTRIBUTED,
    roster: dict[str, str] | None = None,
) -> Offer:
    """An offer that `POLICY` allows, but for the arguments."""
    secure = Parameters.of(NAMES, list(KEYS.values()), min_shops=min_shops, colluders=colluders) if is_masked else None
    spec, schedule = None, ()
    if is_private:
        spec = PrivacySpec(
            epsilon,
            delta,
            mode,
            public_shoppers=100,
            max_shoppers=1000,
            min_shops=min_shops,
            colluders=colluders if noise_colluders is None else noise_colluders,
        )
        schedule = tuple(PlannedRelease("sum", 1.0, 9.0, sampling_rate) for _ in range(num_rounds))
    terms = Terms(NAMES, min_shops, "run", privacy=spec, schedule=schedule, secure=secure)
    plain = json.loads(json.dumps(terms.to_json()))
    return Offer(model, {}, plain, roster or {name: key.raw.hex() for name, key in KEYS.items()}, {"keys": ["a"]})


def check(policy: Policy, asked: Offer, shop: str = "ant", identity: str = "ant") -> None:
    policy.check(asked, shop=shop, key=KEYS[identity])


def test_an_offer_within_every_limit_passes():
    check(POLICY, offer())
    check(dataclasses.replace(POLICY, allow_research=True), offer(is_private=False))
    local = dataclasses.replace(POLICY, require_masks=False)
    check(local, offer(is_masked=False, mode=Mode.LOCAL))


@pytest.mark.parametrize(
    ("policy", "asked", "words"),
    [
        ({}, {"epsilon": 2.1}, "epsilon 2.1 is asked; policy.max_epsilon is 2"),
        ({}, {"delta": 2e-6}, "delta 2e-06 is asked; policy.max_delta is 1e-06"),
        ({}, {"model": "evil.models:Model"}, "model 'evil.models:Model', which policy.models does not list"),
        ({}, {"model": "fedrec.modelsx:Model"}, "which policy.models does not list"),
        ({"min_shops": 5}, {}, "sums over 4 shops; policy.min_shops is 5"),
        ({}, {"is_masked": False}, "without secure aggregation; policy.require_masks is true"),
        ({"min_colluders": 2}, {}, "masks against 1 colluders; policy.min_colluders is 2"),
        ({}, {"is_private": False}, "promises nothing to shoppers; policy.allow_research is false"),
        ({"max_rounds": 2}, {}, "3 noisy sums are asked; policy.max_rounds is 2"),
        ({}, {"sampling_rate": 0.75}, "sampling rate 0.75 is asked; policy.max_sampling_rate is 0.5"),
        ({"min_colluders": 2}, {"colluders": 2, "noise_colluders": 1, "min_shops": 5}, "shared noise against 1"),
        ({"require_masks": False}, {"is_masked": False}, "masks off: it needs masks"),
        ({"roster": ""}, {}, "no roster was confirmed: compare it with the other shops"),
        ({"roster": "0000" + POLICY.roster[4:]}, {}, "policy.roster is 0000-"),
    ],
)
def test_each_limit_refuses_with_both_numbers(policy, asked, words):
    with pytest.raises(RoundRefused, match=words):
        check(dataclasses.replace(POLICY, **policy), offer(**asked))


def test_a_benchmarks_promise_is_refused():
    terms = offer().terms
    asked = dataclasses.replace(
        offer(),
        terms={
            **terms,
            "privacy": {**terms["privacy"], "colluders": 0, "min_shops": 5, "is_benchmark": True},
            "min_shops": 5,
            "secure": {**terms["secure"], "min_shops": 5},
        },
    )
    with pytest.raises(FedrecError, match="benchmark"):
        check(dataclasses.replace(POLICY, min_colluders=0), asked)


def test_a_roster_without_this_shops_key_is_refused():
    with pytest.raises(RoundRefused, match="has no shop 'ant' with this shop's key: enrol again"):
        check(POLICY, offer(), "ant", "bee")
    with pytest.raises(RoundRefused, match="has no shop 'fox'"):
        check(POLICY, offer(), "fox", "ant")


def test_a_model_of_a_foreign_package_is_taken_only_where_the_policy_lists_it():
    asked = offer(model="mine:Model")
    check(dataclasses.replace(POLICY, models=("mine:Model",)), asked)
    with pytest.raises(RoundRefused, match=r"policy\.models"):
        check(dataclasses.replace(POLICY, models=("mine:Other",)), asked)


def test_a_private_variant_of_a_model_that_is_not_listed_is_refused_too():
    asked = offer(model="fedrec.models.private_neural:PrivateNeural")
    own, theirs = (dataclasses.replace(asked, settings={"base": base}) for base in (MODEL, "mine:Model"))
    check(POLICY, own)
    check(dataclasses.replace(POLICY, models=("mine:Model",)), theirs)
    with pytest.raises(RoundRefused, match=r"mine:Model.*policy\.models"):
        check(POLICY, theirs)


def test_a_private_variant_within_another_does_not_hide_a_model_from_the_policy():
    variant = "fedrec.models.private_neural:PrivateNeural"
    asked = offer(model=variant)
    hidden = {"base": variant, "network": json.dumps({"base": "mine:Model"})}
    with pytest.raises(ConfigError, match="is a private variant itself"):
        dataclasses.replace(asked, settings=hidden).read_model().make_network(8)


def test_a_private_variant_of_a_model_without_private_steps_is_refused():
    asked = offer(model="fedrec.models.private_neural:PrivateNeural")
    with pytest.raises(ConfigError, match="'vaegan' has no private steps"):
        dataclasses.replace(asked, settings={"base": "vaegan"}).read_model().make_network(8)


def test_a_refused_model_is_not_imported(tmp_path, monkeypatch, town):
    (tmp_path / "foreign.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    plain = town.offer()
    foreign = dataclasses.replace(plain, model="foreign:Model").sign(town.key)
    member = town.member()
    with pytest.raises(RoundRefused, match="foreign:Model"):
        member.accept(foreign)
    assert "foreign" not in sys.modules
    member.close()


@pytest.mark.parametrize(
    "values",
    [
        {"max_epsilon": 0.0},
        {"max_epsilon": float("nan")},
        {"max_epsilon": float("inf")},
        {"max_delta": 1.0},
        {"min_shops": 0},
        {"min_colluders": -1},
        {"max_rounds": 0},
        {"max_sampling_rate": 1.5},
        {"budget_epsilon": -1.0},
        {"budget_period": "week"},
        {"max_aborts": -1},
    ],
)
def test_a_policy_with_a_number_out_of_range_is_refused(values: dict[str, object]):
    with pytest.raises((BadAssumption, FedrecError, ValueError)):
        Policy(**values)


@pytest.mark.parametrize("name", ["", " north", "../x", "a/b", "x" * 61, ".hidden", "ä"])
def test_names_that_could_be_paths_are_refused(name: str):
    with pytest.raises(ConfigError, match="letters, digits"):
        check_name(name)


def test_names_of_usual_kinds_pass():
    keep: Callable[[str], str] = check_name
    assert [keep(name) for name in ("north", "N-1.a_b", "7")] == ["north", "N-1.a_b", "7"]
