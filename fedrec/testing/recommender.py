"""The contract of every recommender made of statistics, as tests that a model's own test class inherits.

    class TestMyModel(RecommenderContract):
        def make_model(self):
            return MyModel()

pytest collects the inherited tests; nothing here needs pytest itself.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from scipy import sparse

from fedrec.models.recommender import Contributions, RoundSpec, State, train_alone
from fedrec.testing.planted import PlantedWorld, train_federated
from fedrec.testing.scoring import ScoringContract, assert_close, assert_equal_states


class RecommenderContract(ScoringContract):
    """Tests that every recommender of statistics rounds passes.

    Attributes:
        rounds_the_sum: `integers` rounds after the sum, with every shopper's bound lowered first.
    """

    rounds_the_sum: bool = False

    def test_sums_and_norms_have_the_promised_shapes(self) -> None:
        world = self.world()
        for spec, contributions in self._rounds(world):
            total = contributions.total(np.ones(world.histories.shape[0]))
            assert total.shape == (spec.layout.size,)
            assert total.dtype == np.float64
            assert np.isfinite(total).all()
            norms = contributions.norms()
            assert norms.shape == (world.histories.shape[0],)
            assert norms.dtype == np.float64

    def test_norms_are_those_of_single_contributions(self) -> None:
        world = self.world()
        for _, contributions in self._rounds(world):
            norms = contributions.norms()
            for shopper in range(0, len(norms), 11):
                alone = contributions.total(_only(shopper, len(norms)))
                np.testing.assert_allclose(np.linalg.norm(alone), norms[shopper], rtol=1e-9, atol=1e-12)

    def test_removing_a_shopper_moves_the_sum_by_her_contribution_alone(self) -> None:
        world, model = self.world(), self.make_model()
        num_shoppers = world.histories.shape[0]
        for spec, contributions in self._rounds(world):
            everyone = contributions.total(np.ones(num_shoppers))
            for shopper in (0, num_shoppers // 2, num_shoppers - 1):
                rest = np.delete(np.arange(num_shoppers), shopper)
                without = model.contributions(spec, world.histories[rest]).total(np.ones(num_shoppers - 1))
                hers = model.contributions(spec, world.histories[[shopper]]).total(np.ones(1))
                assert_close(everyone - without, hers, 1e-9, scale=everyone)

    def test_order_of_shoppers_does_not_matter(self) -> None:
        world, model = self.world(), self.make_model()
        order = np.random.default_rng(1).permutation(world.histories.shape[0])
        weights = np.random.default_rng(2).random(world.histories.shape[0])
        for spec, contributions in self._rounds(world):
            shuffled = model.contributions(spec, world.histories[order])
            np.testing.assert_allclose(shuffled.norms(), contributions.norms()[order], rtol=1e-12)
            assert_close(shuffled.total(weights[order]), contributions.total(weights), 1e-9)

    def test_integers_are_the_sum_within_a_step_for_each_shopper(self) -> None:
        if self.rounds_the_sum:
            return
        world = self.world()
        weights = np.random.default_rng(5).random(world.histories.shape[0])
        for spec, contributions in self._rounds(world):
            for scale in (3.0, 1e4):
                whole = contributions.integers(weights, scale)
                assert whole.shape == (spec.layout.size,)
                assert whole.dtype == np.int64
                exact = scale * contributions.total(weights)
                np.testing.assert_allclose(whole, exact, rtol=1e-9, atol=len(weights))

    def test_integers_of_a_shopper_are_her_values_cut_off(self) -> None:
        """Toward zero, so that no rounding lifts her above her bound."""
        if self.rounds_the_sum:
            return
        world = self.world()
        num_shoppers, scale = world.histories.shape[0], 1e5 / 3
        for _, contributions in self._rounds(world):
            norms = contributions.norms()
            for shopper in range(0, num_shoppers, 11):
                only = _only(shopper, num_shoppers)
                whole, exact = contributions.integers(0.7 * only, scale), 0.7 * scale * contributions.total(only)
                assert (np.abs(whole) <= np.abs(exact) * (1 + 1e-12)).all()
                assert (np.abs(whole - exact) < 1 + 1e-6).all()
                assert np.linalg.norm(whole.astype(np.float64)) <= 0.7 * scale * norms[shopper] * (1 + 1e-12)

    def test_removing_a_shopper_moves_the_integers_by_no_more_than_her_bound(self) -> None:
        world, model = self.world(), self.make_model()
        num_shoppers = world.histories.shape[0]
        weights = np.random.default_rng(6).random(num_shoppers)
        for spec, contributions in self._rounds(world):
            everyone, norms = contributions.integers(weights, 2.0**18), contributions.norms()
            for shopper in (0, num_shoppers // 2, num_shoppers - 1):
                rest = np.delete(np.arange(num_shoppers), shopper)
                without = model.contributions(spec, world.histories[rest]).integers(weights[rest], 2.0**18)
                moved = np.linalg.norm((everyone - without).astype(np.float64))
                assert moved <= 2.0**18 * weights[shopper] * norms[shopper] * (1 + 1e-12)
                if not self.rounds_the_sum:
                    hers = model.contributions(spec, world.histories[[shopper]]).integers(weights[[shopper]], 2.0**18)
                    np.testing.assert_array_equal(everyone - without, hers)

    def test_integers_do_not_know_the_order_of_shoppers(self) -> None:
        world, model = self.world(), self.make_model()
        order = np.random.default_rng(1).permutation(world.histories.shape[0])
        weights = np.random.default_rng(2).random(world.histories.shape[0])
        for spec, contributions in self._rounds(world):
            shuffled = model.contributions(spec, world.histories[order]).integers(weights[order], 2.0**18)
            np.testing.assert_array_equal(shuffled, contributions.integers(weights, 2.0**18))

    def test_sum_is_linear_in_the_weights(self) -> None:
        world = self.world()
        rng = np.random.default_rng(3)
        first, second = rng.random((2, world.histories.shape[0]))
        for _, contributions in self._rounds(world):
            together = contributions.total(0.5 * first + 2 * second)
            apart = 0.5 * contributions.total(first) + 2 * contributions.total(second)
            assert_close(together, apart, 1e-9)
            assert not contributions.total(np.zeros(len(first))).any()

    def test_an_empty_history_contributes_nothing(self) -> None:
        world, model = self.world(), self.make_model()
        nobody = sparse.csr_matrix((2, world.public.num_items), dtype=np.float32)
        for spec, _ in self._rounds(world):
            contributions = model.contributions(spec, nobody)
            assert not contributions.norms().any()
            assert not contributions.total(np.ones(2)).any()
            assert not contributions.integers(np.ones(2), 1e6).any()

    def test_advance_keeps_old_arrays_and_owns_new_ones(self) -> None:
        world, model = self.world(), self.make_model()
        state: State = {}
        index = 0
        while (spec := model.plan_round(index, state, world.public)) is not None:
            before = {name: values.copy() for name, values in state.items()}
            total = model.contributions(spec, world.histories).total(np.ones(world.histories.shape[0]))
            moved = model.advance(spec, state, total, world.public)
            kept = {name: values.copy() for name, values in moved.items()}
            total[:] = -1
            assert_equal_states(state, before)
            assert_equal_states(moved, kept)
            state, index = moved, index + 1

    def test_federated_equals_pooled(self) -> None:
        world, model = self.world(), self.make_model()
        pooled = model.fit(train_alone(model, world.histories, world.public), world.public).scores(world.histories)
        shop_of = np.random.default_rng(4).permutation(world.histories.shape[0])
        for num_shops in (1, 3, 50):
            shops = [world.histories[shop_of % num_shops == shop] for shop in range(num_shops)]
            state = train_federated(model, shops, world.public)
            scores = model.fit(state, world.public).scores(world.histories)
            assert_close(scores, pooled, self.relative_tolerance)

    def test_a_shop_with_all_the_data_has_the_global_statistics(self) -> None:
        if self.has_own_units:
            return
        world, model, state = self.trained_state()
        projected = model.project(state, np.arange(world.public.num_items), world.public)
        own = model.own_statistics(projected, world.histories, world.public)
        mixed = model.fit(model.mix(projected, own, global_share=0.5), world.public)
        expected = model.fit(state, world.public).scores(world.histories)
        assert_close(mixed.scores(world.histories), expected, self.relative_tolerance)

    def _rounds(self, world: PlantedWorld) -> Iterator[tuple[RoundSpec, Contributions]]:
        """Every round of one training, with the contributions of all shoppers; at most the first five."""
        model = self.make_model()
        state: State = {}
        for index in range(5):
            spec = model.plan_round(index, state, world.public)
            if spec is None:
                return
            contributions = model.contributions(spec, world.histories)
            yield spec, contributions
            total = contributions.total(np.ones(world.histories.shape[0]))
            state = model.advance(spec, state, total, world.public)


def _only(shopper: int, num_shoppers: int) -> np.ndarray:
    weights = np.zeros(num_shoppers)
    weights[shopper] = 1
    return weights
