"""Settings of the models of pairs: what reaches the network, and what is refused."""

import pytest

from fedrec.errors import ConfigError
from fedrec.models.ncf import NcfSettings, NeuMf


def test_the_tower_s_width_and_expected_draws_reach_the_network():
    settings = NcfSettings(factors=8, is_dot_product=False, tower_factors=3, layers=2, fold_in_rate=0.2)
    network = NeuMf(settings).make_network(11)
    assert network.widths == [8, 6]
    assert network.output.in_features == 8 + 3
    assert network.settings.is_expected
    assert network.settings.fold_in_rate == 0.2
    dot = NeuMf(NcfSettings(factors=8, tower_factors=3)).make_network(11)
    assert dot.output.in_features == 3
    same = NeuMf(NcfSettings(factors=8, tower_factors=0, layers=2, is_expected=False)).make_network(11)
    assert same.widths == [8, 16]
    assert not same.settings.is_expected


def test_the_vectors_rate_reaches_the_training():
    assert NeuMf(NcfSettings(vector_learning_rate=0.2)).fit_settings(5).vector_learning_rate == 0.2


@pytest.mark.parametrize(
    "wrong", [{"tower_factors": -1}, {"fold_in_rate": 0}, {"is_expected": True, "loss": "softmax"}]
)
def test_wrong_settings_are_refused(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        NcfSettings(**wrong)
