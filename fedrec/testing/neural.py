"""The contract of every neural recommender, as tests that a model's own test class inherits."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from scipy import sparse

from fedrec.models import can_be_private
from fedrec.models.recommender import LOSS, WEIGHT, PublicInputs, RoundKind, RoundSpec, State
from fedrec.privacy.draws import Draws, shopper_digests
from fedrec.privacy.mechanisms import Outlook, PlannedRelease
from fedrec.testing.planted import PlantedWorld, share_of_wins, train_federated
from fedrec.testing.scoring import ScoringContract, assert_close, assert_equal_states
from fedrec.training.server_step import without_memory

_NUM_SHOPPERS = 40
_FEW_STEPS = 3


class NeuralContract(ScoringContract):
    """Tests of local updates, of devices, and of what leaves under an epsilon.

    Attributes:
        learns_in_shops: planted structure is found by averaging over shops too.
    """

    has_own_units = True
    relative_tolerance = 1e-4
    learns_in_shops: bool = True

    def test_a_local_update_is_the_change_times_the_shoppers_their_number_and_their_loss(self) -> None:
        world, model = self.world(), self._neural()
        rows = sparse.vstack([world.histories[:20], sparse.csr_matrix((3, world.public.num_items))], format="csr")
        spec = first_update(model, world)
        update = model.local_update(spec, rows, _draws(rows))
        assert update.shape == (spec.layout.size,)
        assert update.dtype == np.float64
        num_active = np.count_nonzero(np.diff(rows.indptr))
        sums = spec.layout.split(update)
        assert sums[WEIGHT] == num_active
        assert 0 < sums[LOSS][0] < np.inf
        once, twice = (model.advance(spec, {}, total, world.public) for total in (update, 2 * update))
        assert_equal_states(once, twice)
        for name in without_memory(once):
            changed = spec.inputs[name] + sums[name] / num_active
            np.testing.assert_allclose(once[name], changed, rtol=1e-6, atol=1e-7)

    def test_a_local_update_follows_from_inputs_rows_and_draws(self) -> None:
        world, model = self.world(), self._neural()
        spec, rows = first_update(model, world), world.histories[:20]
        first, again = (model.local_update(spec, rows, _draws(rows)) for _ in range(2))
        np.testing.assert_array_equal(first, again)
        order = np.random.default_rng(0).permutation(20)
        shuffled = model.local_update(spec, rows[order], _draws(rows).take(order))
        assert_close(shuffled, first, 1e-3)

    def test_a_shop_without_shoppers_changes_nothing(self) -> None:
        world, model = self.world(), self._neural()
        spec, nobody = first_update(model, world), sparse.csr_matrix((2, world.public.num_items))
        update = model.local_update(spec, nobody, _draws(nobody))
        assert not update.any()
        moved = model.advance(spec, {}, update, world.public)
        for name in without_memory(moved):
            np.testing.assert_array_equal(moved[name], spec.inputs[name])

    def test_shops_together_find_the_planted_blocks(self) -> None:
        if not self.learns_in_shops:
            return
        world, model = self.world(), self._neural()
        state = train_federated(model, [world.histories[place::3] for place in range(3)], world.public)
        scores = model.fit(state, world.public).scores(world.histories)
        wins = share_of_wins(world, scores)
        assert wins > 0.85, f"an item of the block beats another in {wins:.2f} of the pairs"

    def test_a_gpu_scores_as_the_cpu_does(self) -> None:
        from fedrec.training.network import pick_device

        if pick_device("auto").type == "cpu":
            return
        world, _, state = self.trained_state()
        model, scores = self._neural(), []
        for device in ("cpu", "cuda"):
            moved = dataclasses.replace(model, settings=dataclasses.replace(model.settings, device=device))
            scores.append(moved.fit(state, world.public).scores(world.histories))
        assert_close(scores[1], scores[0], 1e-3)

    def test_removing_a_shopper_moves_a_clipped_step_by_no_more_than_the_bound(self) -> None:
        spec, rows, model, _ = self._step()
        if model is None:
            return
        draws = _draws(rows)
        bound = float(np.median(model.gradients(spec, rows, draws).norms()))
        whole, norms = model.gradients(spec, rows, draws).clipped(bound)
        assert norms.max() > 1.01 * bound, "nobody is clipped: the test says nothing"
        for gone in (0, 7, rows.shape[0] - 1):
            rest = np.delete(np.arange(rows.shape[0]), gone)
            without, _ = model.gradients(spec, rows[rest], draws.take(rest)).clipped(bound)
            assert np.linalg.norm(whole - without) <= bound * (1 + 1e-9)

    def test_a_step_of_nobody_is_zero(self) -> None:
        spec, rows, model, _ = self._step()
        if model is None:
            return
        for some in (rows[:0], sparse.csr_matrix((2, rows.shape[1]), dtype=np.float32)):
            total, norms = model.gradients(spec, some, _draws(some)).clipped(1.0)
            assert total.shape == (spec.layout.size,)
            assert not total.any()
            assert not norms.any()

    def test_private_steps_end_in_a_model_that_scores(self) -> None:
        _, rows, model, public = self._step()
        if model is None:
            return
        state = train_federated(model, [rows[:25], rows[25:]], public)
        scores = model.fit(state, public).scores(rows)
        assert scores.shape == rows.shape
        assert scores.dtype == np.float32
        assert np.isfinite(scores).all()
        positions = np.array([4, -1, 2, 9])
        shop = PublicInputs(np.array(["a", "b", "c", "d"], object))
        few = rows[:, [4, 4, 2, 9]]
        assert np.isfinite(model.fit(state, public).restrict(positions, shop).scores(few)).all()
        projected = model.project(state, positions, shop)
        own = model.own_statistics(projected, few, shop)
        mixed = model.fit(model.mix(projected, own, global_share=0.5), shop)
        assert np.isfinite(mixed.scores(few)).all()

    def _step(self) -> tuple[RoundSpec, sparse.csr_matrix, Any, PublicInputs]:
        """A gradient step of the private variant after its statistics, the rows, the variant (None: there is none)."""
        world, model = self.world(), self._neural()
        rows, spec = world.histories[:_NUM_SHOPPERS], RoundSpec(RoundKind.STATISTICS, "none", None)  # type: ignore[arg-type]
        if not can_be_private(model):
            return spec, rows, None, world.public
        model = dataclasses.replace(model, settings=dataclasses.replace(model.settings, private_steps=_FEW_STEPS))
        schedule = tuple(
            PlannedRelease(one.name, one.clip_norm, 0.01)
            for one in model.release_requests()
            for _ in range(one.repeats)
        )
        outlook = Outlook(schedule, tuple(0.01 for _ in schedule), _NUM_SHOPPERS)
        private = model.private(outlook, world.public)
        state: State = {}
        for index in range(len(schedule)):
            spec = private.plan_round(index, state, world.public)
            assert spec.name == schedule[index].name
            if spec.kind is RoundKind.GRADIENT_STEP:
                break
            total = private.contributions(spec, rows).total(np.ones(_NUM_SHOPPERS))
            state = private.advance(spec, state, total, world.public, noise_sd=0.01)
        return spec, rows, private, world.public

    def _neural(self) -> Any:
        return self.make_model()


def first_update(model: Any, world: PlantedWorld) -> RoundSpec:
    """The model's first local update, after its sums over the world's shoppers if it has such."""
    index, state = 0, State()
    while (spec := model.plan_round(index, state, world.public)).kind is RoundKind.STATISTICS:
        total = model.contributions(spec, world.histories).total(np.ones(world.histories.shape[0]))
        state, index = model.advance(spec, state, total, world.public), index + 1
    assert spec.kind is RoundKind.LOCAL_UPDATE
    return spec


def _draws(rows: sparse.csr_matrix) -> Draws:
    return Draws.seeded("contract", shopper_digests(range(rows.shape[0])))
