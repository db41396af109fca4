"""What every model must do once it is trained, as tests that a model's own test class inherits."""

from __future__ import annotations

import dataclasses
import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays
from scipy import sparse

from fedrec.models.recommender import Explainable, PublicInputs, Recommender, Scorer, State, train_alone
from fedrec.testing.planted import PlantedWorld, plant_world, share_of_wins


class ScoringContract(ABC):
    """Tests of settings, scores, a shop's item space and personalisation.

    Attributes:
        is_personal: scores depend on the history (popularity says False; then nothing is asked about structure).
        has_content: the planted world's items have features.
        has_own_units: settings are in units of the sum itself, so twice the sum makes another model.
        relative_tolerance: of scores that should be equal, relative to the largest score.
    """

    is_personal: bool = True
    has_content: bool = True
    has_own_units: bool = False
    relative_tolerance: float = 1e-5

    @abstractmethod
    def make_model(self) -> Recommender:
        """A fresh model with the settings to be tested."""

    def world(self) -> PlantedWorld:
        """The data of most tests."""
        return plant_world(has_content=self.has_content)

    def test_model_is_a_frozen_dataclass_with_plain_settings(self) -> None:
        model: Any = self.make_model()
        assert isinstance(model.name, str)
        assert model.name
        for holder in (model, model.settings):
            assert dataclasses.is_dataclass(holder), f"{type(holder).__name__} is no dataclass"
            params: Any = holder
            assert params.__dataclass_params__.frozen, f"{type(holder).__name__} is not frozen"
        json.dumps(dataclasses.asdict(model.settings))

    def test_candidates_are_valid_settings(self) -> None:
        model: Any = self.make_model()
        for field_name, values in model.candidates().items():
            assert values, f"candidates() gives no value for {field_name}"
            for value in values:
                changed = dataclasses.replace(model.settings, **{field_name: value})
                assert getattr(changed, field_name) == value

    def test_fit_fields_are_settings(self) -> None:
        model: Any = self.make_model()
        known = {field.name for field in dataclasses.fields(model.settings)}
        assert set(getattr(model, "fit_fields", ())) <= known

    def test_training_twice_gives_the_same_arrays(self) -> None:
        world = self.world()
        first, second = (train_alone(self.make_model(), world.histories, world.public) for _ in range(2))
        assert_equal_states(first, second)

    def test_scores_are_float32_and_finite_for_every_row(self) -> None:
        world, scorer = self.trained()
        rows = sparse.vstack([world.histories[:5], sparse.csr_matrix((1, world.public.num_items))], format="csr")
        scores = scorer.scores(rows)
        assert scores.shape == (6, world.public.num_items)
        assert scores.dtype == np.float32
        assert np.isfinite(scores).all()
        assert scorer.scores(world.histories[:0]).shape == (0, world.public.num_items)

    def test_a_row_is_scored_alike_alone_and_among_others(self) -> None:
        world, scorer = self.trained()
        together = scorer.scores(world.histories[:7])
        alone = np.concatenate([scorer.scores(world.histories[[row]]) for row in range(7)])
        assert_close(together, alone, self.relative_tolerance)

    def test_scores_follow_the_history(self) -> None:
        if not self.is_personal:
            return
        world, scorer = self.trained()
        one_each = rows_with([[0], [1]], world.public.num_items)
        scores = scorer.scores(one_each)
        assert not np.allclose(scores[0], scores[1])

    def test_planted_blocks_are_found(self) -> None:
        if not self.is_personal:
            return
        world, scorer = self.trained()
        scores = scorer.scores(world.histories)
        wins = share_of_wins(world, scores)
        assert wins > 0.9, f"an item of the shopper's block beats another in {wins:.2f} of the pairs"

    def test_restricting_to_the_same_items_changes_nothing(self) -> None:
        world, scorer = self.trained()
        same = scorer.restrict(np.arange(world.public.num_items), world.public)
        assert_close(same.scores(world.histories), scorer.scores(world.histories), self.relative_tolerance)

    def test_restricting_keeps_the_scores_of_a_shops_items(self) -> None:
        world, scorer = self.trained()
        positions = np.array([4, 2, 9, 17, 30, 11, 25])
        shop = _subset(world.public, positions)
        rows = rows_with([[4, 9], [30], [2, 17, 25]], world.public.num_items)
        restricted = scorer.restrict(positions, shop).scores(rows[:, positions])
        assert_close(restricted, scorer.scores(rows)[:, positions], self.relative_tolerance)

    def test_items_that_the_model_does_not_know_get_finite_scores(self) -> None:
        world, scorer = self.trained()
        positions = np.array([-1, 4, 2, -1, 9, -1])
        for content in (world.public.content, None):
            shop = _subset(PublicInputs(world.public.items, content), positions)
            rows = rows_with([[1, 2], [0, 3], []], len(positions))
            scores = scorer.restrict(positions, shop).scores(rows)
            assert scores.shape == (3, len(positions))
            assert np.isfinite(scores).all()

    def test_a_shop_may_know_none_of_the_items(self) -> None:
        world, scorer = self.trained()
        positions = np.full(3, -1)
        shop = _subset(PublicInputs(world.public.items), positions)
        assert np.isfinite(scorer.restrict(positions, shop).scores(rows_with([[0], []], 3))).all()
        model = self.make_model()
        projected = model.project(train_alone(model, world.histories, world.public), positions, shop)
        own = model.own_statistics(projected, rows_with([[0, 1], [0, 2]], 3), shop)
        mixed = model.fit(model.mix(projected, own, global_share=0.5), shop)
        assert np.isfinite(mixed.scores(rows_with([[0], []], 3))).all()

    def test_global_share_one_is_the_global_model(self) -> None:
        world, model, state = self.trained_state()
        projected = model.project(state, np.arange(world.public.num_items), world.public)
        own = model.own_statistics(projected, world.histories[:10], world.public)
        mixed = model.fit(model.mix(projected, own, global_share=1.0), world.public)
        expected = model.fit(state, world.public).scores(world.histories)
        assert_close(mixed.scores(world.histories), expected, self.relative_tolerance)

    def test_global_share_zero_is_the_shop_alone(self) -> None:
        world, model, state = self.trained_state()
        rows = world.histories[:40]
        projected = model.project(state, np.arange(world.public.num_items), world.public)
        own = model.own_statistics(projected, rows, world.public)
        mixed = model.fit(model.mix(projected, own, global_share=0.0), world.public).scores(rows)
        assert_close(mixed, model.fit(own, world.public).scores(rows), self.relative_tolerance)
        is_one_shot = not getattr(model, "is_iterative", False) and not self.has_own_units
        if is_one_shot and not self._has_choice_of_items(state):
            alone = model.fit(train_alone(model, rows, world.public), world.public).scores(rows)
            assert_close(mixed, alone, self.relative_tolerance)

    def test_own_statistics_have_the_shapes_of_the_projected_state(self) -> None:
        world, model, state = self.trained_state()
        positions = np.array([4, 2, -1, 17, 30, -1])
        shop = _subset(world.public, positions)
        before = {name: values.copy() for name, values in state.items()}
        projected = model.project(state, positions, shop)
        own = model.own_statistics(projected, rows_with([[0, 2], [3, 5]], len(positions)), shop)
        assert {n: (v.shape, v.dtype) for n, v in own.items()} == {n: (v.shape, v.dtype) for n, v in projected.items()}
        kept = [{name: values.copy() for name, values in arrays.items()} for arrays in (projected, own)]
        for share in (0.0, 0.3, 1.0):
            scorer = model.fit(model.mix(projected, own, global_share=share), shop)
            assert np.isfinite(scorer.scores(rows_with([[0, 2], []], len(positions)))).all()
        assert_equal_states(projected, kept[0])
        assert_equal_states(own, kept[1])
        assert_equal_states(state, before)

    def test_state_survives_a_file(self) -> None:
        world, model, state = self.trained_state()
        loaded = load_arrays(save_arrays({name: np.ascontiguousarray(values) for name, values in state.items()}))
        assert_equal_states(loaded, state)
        rows = world.histories[:9]
        expected = model.fit(state, world.public).scores(rows)
        np.testing.assert_array_equal(model.fit(loaded, world.public).scores(rows), expected)

    def test_a_shop_with_no_shoppers_and_one_with_one_item_can_train(self) -> None:
        for num_shoppers, num_items in ((0, 5), (4, 1), (1, 1), (1, 6)):
            model = self.make_model()
            public = PublicInputs(np.array([f"item-{place}" for place in range(num_items)], dtype=object))
            histories = sparse.csr_matrix(np.ones((num_shoppers, num_items), np.float32))
            scorer = model.fit(train_alone(model, histories, public), public)
            scores = scorer.scores(rows_with([[0], []], num_items))
            assert scores.shape == (2, num_items)
            assert np.isfinite(scores).all()

    def test_explanations_have_one_finite_part_for_each_bought_item(self) -> None:
        world, scorer = self.trained()
        if not isinstance(scorer, Explainable):
            return
        for item in range(world.public.num_items):
            parts = scorer.because(np.array([3, 0, 8]), item)
            assert parts.shape == (3,)
            assert parts.dtype == np.float32
            assert np.isfinite(parts).all()

    def trained_state(self) -> tuple[PlantedWorld, Recommender, State]:
        world, model = self.world(), self.make_model()
        return world, model, train_alone(model, world.histories, world.public)

    def trained(self) -> tuple[PlantedWorld, Scorer]:
        world, model, state = self.trained_state()
        return world, model.fit(state, world.public)

    def _has_choice_of_items(self, state: State) -> bool:
        """Whether the model keeps statistics of chosen items only: alone, a shop would choose others."""
        return "covered" in state and len(state["covered"]) < self.world().public.num_items


def rows_with(histories: Sequence[Sequence[int]], num_items: int) -> sparse.csr_matrix:
    rows = np.zeros((len(histories), num_items), np.float32)
    for row, items in enumerate(histories):
        rows[row, list(items)] = 1
    return sparse.csr_matrix(rows)


def _subset(public: PublicInputs, positions: np.ndarray) -> PublicInputs:
    """A shop's item space; items at -1 are its own, with the content of whatever stands last."""
    items = np.array([public.items[p] if p >= 0 else f"own-{n}" for n, p in enumerate(positions)], dtype=object)
    return PublicInputs(items, None if public.content is None else public.content[positions])


def assert_close(actual: np.ndarray, expected: np.ndarray, rtol: float, scale: np.ndarray | None = None) -> None:
    """Equal within ``rtol`` of the largest absolute value of ``scale`` (default: of ``expected``)."""
    largest = float(np.abs(expected if scale is None else scale).max(initial=0))
    np.testing.assert_allclose(actual, expected, rtol=rtol, atol=rtol * largest)


def assert_equal_states(actual: State, expected: State) -> None:
    assert set(actual) == set(expected)
    for name in expected:
        np.testing.assert_array_equal(actual[name], expected[name], err_msg=name)
