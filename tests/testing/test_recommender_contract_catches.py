"""The contract suite fails the models that it is there to fail."""

import re
import subprocess
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
from scipy import sparse

from fedrec.models.ease import Ease, EaseSettings
from fedrec.models.popularity import ItemCounts, Popularity, PopularityScorer
from fedrec.testing import RecommenderContract, plant_world


@dataclass(frozen=True)
class ShopWideMean(ItemCounts):
    """Counts divided by the number of the shop's shoppers."""

    def total(self, weights):
        return super().total(weights) / max(1, self.rows.shape[0])


@dataclass(frozen=True)
class WrongNorms(ItemCounts):
    """The number of items in place of its root."""

    def norms(self):
        return super().norms() ** 2


@dataclass(frozen=True)
class TableOrder(ItemCounts):
    """Each row weighs what its place in the table says."""

    def total(self, weights):
        return super().total(weights * (1 + np.arange(len(weights))))


@dataclass(frozen=True)
class Clipped(ItemCounts):
    """The sum is cut off, so it is no longer a sum."""

    def total(self, weights):
        return np.minimum(super().total(weights), 5)


@dataclass(frozen=True)
class RoundsTheSum(ItemCounts):
    """Rounds once, after the sum: two neighbouring tables may differ by more than a shopper's integers."""

    def integers(self, weights, scale):
        return np.rint(scale * self.total(weights)).astype(np.int64)


@dataclass(frozen=True)
class RoundsUp(ItemCounts):
    """Away from zero, so that a shopper's integers exceed her bound."""

    def integers(self, weights, scale):
        return sum(
            (np.ceil(scale * w * row.toarray()[0]).astype(np.int64) for w, row in zip(weights, self.rows, strict=True)),
            np.zeros(self.rows.shape[1], np.int64),
        )


@dataclass(frozen=True)
class Counting(Popularity):
    """Popularity with other contributions."""

    counting: type[ItemCounts] = field(default=ItemCounts)

    def contributions(self, spec, histories):
        return self.counting(histories)


class KeepsView(Popularity):
    def advance(self, spec, state, total, public, *, noise_sd=0.0):
        return {"popularity": total}


class Random(Popularity):
    def advance(self, spec, state, total, public, *, noise_sd=0.0):
        return {"popularity": total + np.random.default_rng().random(len(total))}


class ScoresByBatch(Popularity):
    def fit(self, state, public):
        return BatchScorer(state["popularity"])


class BatchScorer(PopularityScorer):
    def scores(self, histories):
        return super().scores(histories) + histories.shape[0]


class MixesAlways(Popularity):
    def mix(self, state, own, *, global_share):
        return {"popularity": state["popularity"] + own["popularity"]}


class ForgetsOwnItems(Popularity):
    def project(self, state, positions, public):
        return {"popularity": state["popularity"][positions[positions >= 0]]}


class Shuffled(Ease):
    def fit(self, state, public):
        scorer = super().fit(state, public)
        return replace(scorer, weights=np.ascontiguousarray(np.roll(scorer.weights, 1, axis=1)))


@pytest.mark.parametrize(
    ("model", "test"),
    [
        (Counting(counting=ShopWideMean), "test_removing_a_shopper_moves_the_sum_by_her_contribution_alone"),
        (Counting(counting=ShopWideMean), "test_federated_equals_pooled"),
        (Counting(counting=WrongNorms), "test_norms_are_those_of_single_contributions"),
        (Counting(counting=TableOrder), "test_order_of_shoppers_does_not_matter"),
        (Counting(counting=TableOrder), "test_removing_a_shopper_moves_the_sum_by_her_contribution_alone"),
        (Counting(counting=Clipped), "test_sum_is_linear_in_the_weights"),
        (Counting(counting=RoundsTheSum), "test_removing_a_shopper_moves_the_integers_by_no_more_than_her_bound"),
        (Counting(counting=RoundsUp), "test_integers_of_a_shopper_are_her_values_cut_off"),
        (Counting(counting=Clipped), "test_federated_equals_pooled"),
        (KeepsView(), "test_advance_keeps_old_arrays_and_owns_new_ones"),
        (Random(), "test_training_twice_gives_the_same_arrays"),
        (ScoresByBatch(), "test_a_row_is_scored_alike_alone_and_among_others"),
        (Popularity(), "test_scores_follow_the_history"),
        (Popularity(), "test_planted_blocks_are_found"),
        (Shuffled(EaseSettings(regularisation=0.5)), "test_planted_blocks_are_found"),
        (MixesAlways(), "test_global_share_zero_is_the_shop_alone"),
        (MixesAlways(), "test_global_share_one_is_the_global_model"),
        (ForgetsOwnItems(), "test_own_statistics_have_the_shapes_of_the_projected_state"),
        (Popularity({}), "test_model_is_a_frozen_dataclass_with_plain_settings"),
    ],
)
def test_a_broken_model_fails(model, test):
    class Suite(RecommenderContract):
        def make_model(self):
            return model

    with pytest.raises(AssertionError):
        getattr(Suite(), test)()


def test_a_planted_world_has_blocks_content_and_every_shoppers_row():
    world = plant_world(num_shoppers=200, num_items=20, num_blocks=4)
    assert world.histories.shape == (200, 20)
    in_block = world.histories.multiply(sparse.csr_matrix(world.blocks == world.tastes[:, None])).sum()
    assert in_block > 0.9 * world.histories.nnz
    assert np.diff(world.public.content.indptr).tolist() == [1, 1, 1, 1, 1, 1, 0] * 2 + [1] * 6
    assert plant_world(has_content=False).public.content is None


def test_the_suite_imports_without_pytest():
    code = "import sys; sys.modules['pytest'] = None; import fedrec.testing"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_model_of_the_page_passes_the_test_of_the_page(tmp_path):
    page = (Path(__file__).parents[2] / "docs" / "write-a-model.md").read_text(encoding="utf-8")
    model, test = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    (tmp_path / "my_package").mkdir()
    (tmp_path / "my_package" / "my_module.py").write_text(model)
    (tmp_path / "test_mine.py").write_text(test)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_mine.py"]
    said = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert said.returncode == 0, said.stdout
