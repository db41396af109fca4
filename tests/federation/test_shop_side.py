import numpy as np
import pytest
from scipy import sparse

from fedrec.errors import BadMessage
from fedrec.federation.coordinator_side import Coordinator
from fedrec.federation.shop_side import contribute
from fedrec.federation.terms import Terms


def plan_with(counting, public, clip_norm):
    return Coordinator(counting, public, Terms(("only",), clip_norm=clip_norm)).next_plan()


def test_without_a_clip_norm_contributions_are_plainly_added(counting, public, histories):
    contribution = contribute(counting, plan_with(counting, public, None), histories[0])
    np.testing.assert_array_equal(contribution.values, [2, 1, 1, 0])


def test_each_shopper_is_scaled_down_to_the_clip_norm(counting, public):
    rows = sparse.csr_matrix(np.array([[3.0, 4.0, 0, 0], [0, 0, 0.5, 0], [0, 0, 0, 0]], dtype=np.float32))
    contribution = contribute(counting, plan_with(counting, public, 1.0), rows)
    # 3-4-5: the first row is divided by five, the second is below the bound and stays, the empty row adds nothing
    np.testing.assert_allclose(contribution.values, [0.6, 0.8, 0.5, 0.0], rtol=1e-15)


def test_one_shopper_moves_the_vector_by_at_most_the_clip_norm(counting, public):
    rows = sparse.random(40, 4, density=0.7, random_state=1, format="csr") * 9
    plan = plan_with(counting, public, 0.75)
    whole = contribute(counting, plan, rows).values
    for shopper in range(40):
        rest = contribute(counting, plan, rows[np.arange(40) != shopper]).values
        assert np.linalg.norm(whole - rest) <= 0.75 * (1 + 1e-12)


@pytest.mark.parametrize("clip_norm", [None, 1.0])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_shopper_who_is_not_finite_counts_as_zero(counting, public, clip_norm, bad):
    rows = sparse.csr_matrix(np.array([[1.0, 0, 0, 0], [bad, 1, 0, 0], [0, 0, 0, 1]]))
    contribution = contribute(counting, plan_with(counting, public, clip_norm), rows)
    np.testing.assert_array_equal(contribution.values, [1, 0, 0, 1])
    assert contribution.num_zeroed == 1


def test_a_shop_without_shoppers_contributes_zeros(counting, public):
    contribution = contribute(counting, plan_with(counting, public, 1.0), sparse.csr_matrix((0, 4)))
    np.testing.assert_array_equal(contribution.values, np.zeros(4))


def test_a_model_whose_sum_has_the_wrong_shape_is_refused(counting, public):
    with pytest.raises(BadMessage):
        contribute(counting, plan_with(counting, public, None), sparse.csr_matrix((2, 5)))
