"""The integer grid: bounds that hold for every integer, and a ring that gives back what it was given."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from fedrec.errors import BadAssumption
from fedrec.privacy.grid import SCALE, Grid, choose_grid

INT64 = st.integers(-(2**63), 2**63 - 1)


def vectors(elements=INT64):
    return arrays.arrays(np.int64, st.integers(0, 20), elements=elements)


@given(vectors(), st.integers(1, 2**62))
def test_saturated_values_stay_within_the_bound_and_the_sum_itself_stays_as_it_is(values, bound):
    before = values.copy()
    saturated = Grid(1.0, 64, bound).saturate(values)
    assert all(abs(int(value)) <= bound for value in saturated)
    assert values.tolist() == before.tolist()
    assert not np.shares_memory(saturated, values)


@given(st.lists(st.tuples(INT64, INT64), max_size=20), st.integers(1, 2**62))
def test_saturation_moves_no_two_values_apart(pairs, bound):
    grid = Grid(1.0, 64, bound)
    left, right = (np.array([pair[i] for pair in pairs], dtype=np.int64) for i in (0, 1))
    apart = [abs(int(a) - int(b)) for a, b in zip(grid.saturate(left), grid.saturate(right), strict=True)]
    assert all(a <= abs(x - y) for a, (x, y) in zip(apart, pairs, strict=True))


@pytest.mark.parametrize("bits", [32, 64])
@given(data=st.data())
def test_what_fits_the_ring_comes_back(bits, data):
    grid = Grid(1.0, bits, 2**20)
    values = data.draw(vectors(st.integers(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)))
    wrapped = grid.wrap(values)
    assert wrapped.dtype.itemsize * 8 == bits
    assert grid.centre(wrapped).tolist() == values.tolist()


@pytest.mark.parametrize("bits", [32, 64])
@given(parts=st.lists(st.integers(-(2**62), 2**62), min_size=1, max_size=9))
def test_a_sum_in_the_ring_is_the_sum_modulo_its_size(bits, parts):
    grid = Grid(1.0, bits, 2**20)
    total = np.zeros(1, grid.ring_dtype)
    for part in parts:
        total += grid.wrap(np.array([part]))
    half = 2 ** (bits - 1)
    assert int(grid.centre(total)[0]) == (sum(parts) + half) % (2 * half) - half


@given(values=vectors(st.integers(-(2**61), 2**61)), step_bits=st.integers(0, 40))
def test_steps_are_the_nearest_whole_ones(values, step_bits):
    steps = Grid(1.0, 64, 1, step_bits).steps(values)
    for value, step in zip(values.tolist(), steps.tolist(), strict=True):
        assert abs(step * 2**step_bits - value) * 2 <= 2**step_bits


@pytest.mark.parametrize("bits", [24, 32, 64])
@given(data=st.data())
def test_packed_sums_come_back_modulo_the_ring(bits, data):
    grid = Grid(1.0, bits, 1)
    parts = data.draw(st.lists(vectors(st.integers(-(2**50), 2**50)).filter(lambda part: len(part) > 0), min_size=1))
    size = min(map(len, parts))
    total = np.zeros(size, grid.ring_dtype)
    for part in parts:
        packed = grid.pack(grid.wrap(part[:size]))
        assert len(packed) == size * bits // 8
        total += grid.unpack(packed)
    half = 2 ** (bits - 1)
    expected = [(sum(int(part[i]) for part in parts) + half) % (2 * half) - half for i in range(size)]
    assert grid.centre(total).tolist() == expected


def test_bytes_that_are_no_whole_values_are_refused():
    with pytest.raises(BadAssumption, match="3 bytes"):
        Grid(1.0, 24, 1).unpack(bytes(5))


def test_steps_are_an_eighth_of_a_shops_noise_at_most_and_save_bytes():
    noise = {"noise_sd_units": 3.0 * 3 * SCALE, "shop_noise_units": 3.0 * SCALE}
    for max_shoppers, bits in ((6_000, 24), (1_000_000, 24), (20_000_000, 32), (2 * 10**9, 64)):
        grid = choose_grid(1.0, max_shoppers=max_shoppers, **noise)
        assert 2**grid.step_bits <= 3.0 * SCALE / 8 < 2 ** (grid.step_bits + 1)
        assert grid.ring_bits == bits
        reach = (max_shoppers * SCALE + 16 * 9.0 * SCALE) / 2**grid.step_bits + 2**14
        assert reach < 2 ** (bits - 1)
    assert choose_grid(1.0, max_shoppers=6_000, noise_sd_units=9.0, shop_noise_units=3.0).step_bits == 0


def test_values_on_the_grid_are_read_in_units_of_the_sum():
    grid = Grid(1.5, 32, SCALE)
    assert grid.unit == 1.5 / 262144
    assert grid.decode(np.array([262144, -131072, 1])).tolist() == [1.5, -0.75, 1.5 / 262144]


def test_the_ring_is_long_where_the_sum_and_16_sd_of_its_noise_pass_2_to_the_31():
    fits = (2**31 - 8000 * SCALE) / 16
    assert choose_grid(1.0, max_shoppers=8000, noise_sd_units=fits - 1e-6).ring_bits == 32
    assert choose_grid(1.0, max_shoppers=8000, noise_sd_units=fits).ring_bits == 64
    assert choose_grid(1.0, max_shoppers=8192, noise_sd_units=0).ring_bits == 64
    assert choose_grid(1.0, max_shoppers=8191, noise_sd_units=0) == Grid(1.0, 32, 8191 * SCALE)


@given(st.integers(1, 2**50), st.floats(0, 2.0**60))
def test_noise_on_a_saturated_value_never_overflows(max_shoppers, noise_sd_units):
    try:
        grid = choose_grid(1.0, max_shoppers=max_shoppers, noise_sd_units=noise_sd_units)
    except BadAssumption:
        assert max_shoppers * SCALE + 16 * noise_sd_units >= 2**62 * (1 - 1e-12)
        return
    assert grid.bound + 24 * noise_sd_units < 2**63  # no value is further out


@pytest.mark.parametrize(
    "wrong",
    [
        {"clip_norm": 0.0},
        {"clip_norm": math.nan},
        {"clip_norm": math.inf},
        {"max_shoppers": 0},
        {"noise_sd_units": math.nan},
        {"noise_sd_units": -1.0},
        {"noise_sd_units": 2.0**60},
        {"max_shoppers": 2**45},
    ],
    ids=str,
)
def test_numbers_that_make_no_grid_are_refused(wrong):
    usual = {"clip_norm": 1.0, "max_shoppers": 100, "noise_sd_units": 10.0}
    given_ = usual | wrong
    with pytest.raises(BadAssumption):
        choose_grid(given_.pop("clip_norm"), **given_)


def test_a_ring_of_other_width_or_a_bound_out_of_range_is_refused():
    for ring_bits, bound in ((16, 5), (32, 0), (64, 2**62 + 1)):
        with pytest.raises(BadAssumption):
            Grid(1.0, ring_bits, bound)


def test_other_types_are_refused_rather_than_cast():
    grid = Grid(1.0, 32, 5)
    for step in (grid.saturate, grid.wrap, grid.decode, grid.centre):
        with pytest.raises(TypeError):
            step(np.zeros(2, np.float32))


@given(st.integers(1, 5000), st.integers(1, 10**6), st.floats(16, 2.0**24))
def test_shops_that_all_saturate_cannot_leave_the_ring(num_shops, max_shoppers, shop_noise_units):
    total_noise = shop_noise_units * math.sqrt(num_shops)
    grid = choose_grid(
        1.0,
        max_shoppers=max_shoppers,
        noise_sd_units=total_noise,
        shop_noise_units=shop_noise_units,
        num_shops=num_shops,
    )
    shop = int(grid.steps(np.array([grid.bound + int(16 * total_noise / num_shops)]))[0])
    total = np.zeros(1, grid.ring_dtype)
    total += grid.ring_dtype.type((num_shops * shop) % 2 ** (8 * grid.ring_dtype.itemsize))
    assert int(grid.centre(total)[0]) == num_shops * shop
