import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedrec.errors import BadMessage, NotFinite, PrivacyError
from fedrec.federation import release as door
from fedrec.federation.plan import RoundPlan
from fedrec.federation.shop_side import Contribution
from fedrec.federation.terms import Terms
from fedrec.models.recommender import Layout, RoundKind, RoundSpec

LAYOUT = Layout((("counts", (2, 2)), ("rest", (1,))))
VALUES = np.array([1.0, -2.5, 0.0, 1e300, 7.0])


def make_plan(index=1, layout=LAYOUT, run_id="r"):
    return RoundPlan(
        index=index,
        spec=RoundSpec(RoundKind.STATISTICS, "counts", layout),
        model_name="m",
        model_settings={},
        items_digest="ab",
        terms=Terms(("x", "y"), run_id=run_id),
    )


def released(plan=None, values=VALUES):
    plan = plan or make_plan()
    return door.release(Contribution(values, plan.spec.layout), plan).to_bytes()


def test_the_values_arrive_as_they_left():
    np.testing.assert_array_equal(door.read_release(released(), make_plan()).values, VALUES)


def test_the_bytes_hold_a_header_of_fixed_size_and_the_values_alone():
    plan = make_plan()
    data = released(plan)
    header = struct.pack("<8sHHI", b"fedrecRL", 5, 0, 1) + plan.digest + bytes.fromhex(LAYOUT.digest())
    assert data == header + bytes(40) + struct.pack("<Q", 5) + VALUES.tobytes()


def test_no_release_is_made_but_at_the_door():
    with pytest.raises(PrivacyError):
        door.Release(None, VALUES.tobytes(), make_plan(), (0, bytes(32)))
    with pytest.raises(PrivacyError):
        door.Release(object(), VALUES.tobytes(), make_plan(), (0, bytes(32)))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_sum_that_is_not_finite_does_not_leave(bad):
    values = VALUES.copy()
    values[2] = bad
    with pytest.raises(NotFinite):
        released(values=values)


def test_infinities_that_cancel_are_noticed():
    with pytest.raises(NotFinite):
        released(values=np.array([np.inf, -np.inf, 0.0, 0.0, 0.0]))


def test_finite_values_whose_sum_overflows_may_leave():
    values = np.full(5, 1.7e308)
    np.testing.assert_array_equal(door.read_release(released(values=values), make_plan()).values, values)


def test_a_contribution_of_another_layout_does_not_leave():
    other = Layout((("counts", (5,)),))
    with pytest.raises(BadMessage):
        door.release(Contribution(VALUES, other), make_plan())
    with pytest.raises(BadMessage):
        door.release(Contribution(VALUES[:4], LAYOUT), make_plan())


@pytest.mark.parametrize(
    "data",
    [
        b"",
        released()[:127],
        released()[:-1],
        released() + b"\0",
        released(make_plan(index=2)),
        released(make_plan(run_id="other")),
        b"fedrecXX" + released()[8:],
        released()[:8] + b"\x01" + released()[9:],
        released()[:10] + b"\x01" + released()[11:],
        released()[:120] + struct.pack("<Q", 2**60) + released()[128:],
        released()[:-8] + struct.pack("<d", float("nan")),
        released()[:-8] + struct.pack("<d", float("-inf")),
    ],
    ids=range(12),
)
def test_bytes_that_are_not_a_release_for_this_plan_are_refused(data):
    with pytest.raises(BadMessage):
        door.read_release(data, make_plan())


def test_a_release_of_another_layout_is_refused():
    other = make_plan(layout=Layout((("counts", (5,)),)))
    with pytest.raises(BadMessage):
        door.read_release(released(), other)


@given(position=st.integers(0, 127), bit=st.integers(0, 7))
def test_every_flipped_bit_of_the_header_is_noticed(position, bit):
    data = bytearray(released())
    data[position] ^= 1 << bit
    with pytest.raises(BadMessage):
        door.read_release(bytes(data), make_plan())


def test_a_printed_release_shows_no_value():
    plan = make_plan()
    shown = repr(door.release(Contribution(VALUES, LAYOUT), plan)) + repr(Contribution(VALUES, LAYOUT))
    assert "2.5" not in shown
    assert "size_bytes=40" in shown
    assert "(5,)" in shown
