"""When rounds stop, by hand."""

import pytest

from fedrec.errors import ConfigError
from fedrec.federation.early_stopping import EarlyStopping
from fedrec.federation.run_record import RoundRecord


def rounds(*values):
    return [RoundRecord(i, "local update", 0.0, 3, 0, 0, 0, figures={"ndcg": one}) for i, one in enumerate(values)]


@pytest.mark.parametrize(
    ("values", "best", "is_over"),
    [
        ((), None, False),
        ((0.1,), 0, False),
        ((0.1, 0.2), 1, False),
        ((0.2, 0.1), 0, False),
        ((0.2, 0.1, 0.2), 0, True),
        ((0.1, 0.3, 0.2, 0.31), 3, False),
        ((0.1, None, 0.05), 0, True),
        ((None, None), None, False),
        ((float("nan"), 0.1, 0.05), 1, False),
    ],
)
def test_it_waits_for_two_rounds_without_a_better_one(values, best, is_over):
    stopping = EarlyStopping("ndcg", 2)
    assert stopping.best(rounds(*values)) == best
    assert stopping.is_over(rounds(*values)) is is_over


def test_another_figure_does_not_count():
    assert EarlyStopping("other", 1).best(rounds(0.1, 0.2)) is None


@pytest.mark.parametrize("patience", [0, -1, float("nan")])
def test_patience_below_one_is_refused(patience):
    with pytest.raises(ConfigError, match="patience"):
        EarlyStopping("ndcg", patience)
