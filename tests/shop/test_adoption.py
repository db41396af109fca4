"""A new global model is served only if it does better; a poisoned one is not, and going back is one step."""

from __future__ import annotations

import json

import numpy as np
import pytest

from fedrec.data.shops import final_rows
from fedrec.errors import BadMessage, ConfigError, StoreError
from fedrec.models.ease import Ease
from fedrec.models.recommender import PublicInputs, train_alone
from fedrec.shop.adoption import LOCAL, current_version, judge_and_keep, modes, roll_back, scorer_of, versions
from fedrec.shop.personalise import ShopPersonalisation

from .town import ITEMS, NUM_ITEMS, small_shop

PUBLIC = PublicInputs(ITEMS)
SETTINGS = ShopPersonalisation(half_share_shoppers=10_000.0)
MODEL = Ease()


def good_state() -> dict[str, np.ndarray]:
    """Of many shoppers of the same kind."""
    many = small_shop("many", num_shoppers=4000, seed=1)
    return train_alone(MODEL, many.train + many.validation, PUBLIC)


GOOD = good_state()


def judge(folder, run_id, state, *, num_shoppers=12, settings=None, **more):
    return judge_and_keep(
        folder,
        run_id,
        MODEL,
        state,
        PUBLIC,
        data=small_shop("ant", num_shoppers=num_shoppers),
        positions=np.arange(NUM_ITEMS),
        shop_public=PUBLIC,
        settings=settings or ShopPersonalisation(half_share_shoppers=10_000.0, min_validation_shoppers=5),
        **more,
    )


def noise(rng: np.random.Generator, like: np.ndarray) -> np.ndarray:
    if like.dtype.kind != "f":
        return like
    return rng.normal(0, np.abs(like).max() * 10, like.shape).astype(like.dtype)


POISONS = {
    "zeros": {name: np.zeros_like(one) for name, one in GOOD.items()},
    "noise": {name: noise(np.random.default_rng(0), one) for name, one in GOOD.items()},
    "negative": {name: -one for name, one in GOOD.items()},
    "shuffled": {name: np.random.default_rng(1).permutation(one) for name, one in GOOD.items()},
}


def is_taken(folder, poison, **arguments) -> bool:
    """Whether the shop takes it; arrays that the model itself cannot use are refused in words."""
    try:
        return judge(folder, "bad", POISONS[poison], **arguments).is_adopted
    except ConfigError:
        return False


def test_a_good_model_is_adopted_and_served(tmp_path):
    found = judge(tmp_path, "r1", GOOD)
    assert found.is_adopted
    assert found.candidate > found.current
    assert found.num_shoppers == 12
    assert current_version(tmp_path) == "r1"
    assert versions(tmp_path) == [LOCAL, "r1"]


def test_an_adopted_model_is_made_ready_before_it_is_current(tmp_path):
    seen = []
    judge(tmp_path, "r1", GOOD, make_ready=lambda version: seen.append((version, current_version(tmp_path))))
    assert seen == [("r1", LOCAL)]
    judge(tmp_path, "r2", POISONS["noise"], make_ready=seen.append)
    assert len(seen) == 1


@pytest.mark.parametrize(("mode", "is_taken"), [("distributed", True), ("none", False)])
def test_under_joint_dp_the_choice_does_not_look_at_raw_events(tmp_path, mode, is_taken):
    """A useless model with a promise is taken, a good one without is not."""
    found = judge(tmp_path, "r1", POISONS["zeros"] if is_taken else GOOD, mode=mode, is_joint_dp=True)
    assert found.is_adopted is is_taken
    assert "joint_dp" in found.reason
    assert modes(tmp_path) == {"r1": mode}


def test_a_run_without_a_promise_is_remembered_when_its_model_is_dropped(tmp_path):
    judge(tmp_path, "open", POISONS["noise"], mode="none")
    judge(tmp_path, "later", POISONS["noise"], mode="local")
    assert versions(tmp_path) == [LOCAL, "later"]
    assert modes(tmp_path) == {"open": "none", "later": "local"}


def test_a_kept_version_serves_a_catalogue_that_has_changed_since(tmp_path):
    judge(tmp_path, "r1", GOOD)
    fewer = PublicInputs(np.append(ITEMS[3:], "new-item"))
    rows = small_shop("ant").train[:, 3:]
    rows.resize(rows.shape[0], fewer.num_items)
    whole = scorer_of(tmp_path, "r1", small_shop("ant").train, PUBLIC, SETTINGS)
    found = scorer_of(tmp_path, "r1", rows, fewer, SETTINGS)
    assert np.argmax(found.weights[5]) + 3 == np.argmax(whole.weights[8])
    assert not found.weights[:, -1].any()


@pytest.mark.parametrize("poison", POISONS)
@pytest.mark.parametrize("num_shoppers", [12, 200])
def test_a_poisoned_model_is_not_adopted(tmp_path, poison, num_shoppers):
    assert not is_taken(tmp_path, poison, num_shoppers=num_shoppers)
    assert current_version(tmp_path) == LOCAL


@pytest.mark.parametrize("poison", POISONS)
def test_a_poisoned_model_does_not_displace_a_good_one_even_where_the_shop_is_too_small_to_test(tmp_path, poison):
    assert judge(tmp_path, "good", GOOD, settings=SETTINGS).is_adopted
    assert not is_taken(tmp_path, poison, settings=SETTINGS)
    assert current_version(tmp_path) == "good"


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_model_that_is_not_finite_is_refused(tmp_path, value):
    broken = {name: one.copy() for name, one in GOOD.items()}
    next(one for one in broken.values() if one.dtype.kind == "f").flat[3] = value
    with pytest.raises(BadMessage, match="not finite"):
        judge(tmp_path, "bad", broken)
    assert versions(tmp_path) == [LOCAL]


@pytest.mark.parametrize("change", ["missing", "short", "square", "text"])
def test_arrays_that_are_not_the_models_are_refused(tmp_path, change):
    name = "co_occurrence"
    array, broken = GOOD[name], dict(GOOD)
    broken[name] = {"short": array[:3], "square": array.reshape(-1, 1), "text": array.astype("S3")}.get(change)
    if change == "missing":
        del broken[name]
    with pytest.raises(BadMessage, match="arrays of run 'bad' are not its model's"):
        judge(tmp_path, "bad", broken)
    assert versions(tmp_path) == [LOCAL]


def test_the_same_run_is_judged_once_and_stays_rolled_back(tmp_path):
    first = judge(tmp_path, "r1", GOOD, settings=SETTINGS)
    assert judge(tmp_path, "r1", GOOD, settings=SETTINGS) == first
    assert roll_back(tmp_path) == LOCAL
    assert judge(tmp_path, "r1", GOOD, settings=SETTINGS) == first
    assert current_version(tmp_path) == LOCAL


def test_rolling_back_goes_to_the_version_before_or_the_one_named(tmp_path):
    for run_id in ("r1", "r2"):
        assert judge(tmp_path, run_id, GOOD, settings=SETTINGS).is_adopted
    assert roll_back(tmp_path) == "r1"
    assert roll_back(tmp_path) == LOCAL
    assert roll_back(tmp_path, "r2") == "r2"
    with pytest.raises(ConfigError, match=r"no version 'r9' here: local, r1, r2"):
        roll_back(tmp_path, "r9")
    with pytest.raises(ConfigError, match="no version"):
        roll_back(tmp_path, "../r1")
    history = json.loads((tmp_path / "current.json").read_bytes())["history"]
    assert [entry["run_id"] for entry in history] == ["r1", "r2", "r1", LOCAL, "r2"]


def test_going_back_while_a_model_is_judged_stays(tmp_path):
    assert judge(tmp_path, "r1", GOOD, settings=SETTINGS).is_adopted
    found = judge(tmp_path, "r2", GOOD, settings=SETTINGS, make_ready=lambda _: roll_back(tmp_path))
    assert not found.is_adopted
    assert "put in the place of r1" in found.reason
    assert current_version(tmp_path) == LOCAL


def test_there_is_nothing_to_go_back_to_at_the_start(tmp_path):
    with pytest.raises(ConfigError, match="replaced no other"):
        roll_back(tmp_path)


def test_a_kept_version_scores_as_the_model_that_was_judged(tmp_path):
    judge(tmp_path, "r1", GOOD)
    data = small_shop("ant", num_shoppers=12)
    scorer = scorer_of(tmp_path, "r1", data.train, PUBLIC, SETTINGS)
    again = scorer_of(tmp_path, "r1", data.train, PUBLIC, SETTINGS)
    scores = scorer.scores(data.train)
    assert scores.shape == (12, NUM_ITEMS)
    np.testing.assert_array_equal(scores, again.scores(data.train))
    assert final_rows(data.train, data.validation, data.fold_in).sum() == data.train.sum() + data.validation.sum()


def test_a_broken_version_says_what_to_do(tmp_path):
    judge(tmp_path, "r1", GOOD)
    (tmp_path / "r1" / "shared.safetensors").write_bytes(b"x")
    data = small_shop("ant", num_shoppers=12)
    with pytest.raises(StoreError, match="go back to another version"):
        scorer_of(tmp_path, "r1", data.train, PUBLIC, SETTINGS)
    (tmp_path / "current.json").write_bytes(b"{")
    with pytest.raises(StoreError, match=r"current\.json: cannot be read"):
        current_version(tmp_path)
