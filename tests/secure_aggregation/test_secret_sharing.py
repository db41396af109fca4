"""Shares: enough of them give the secret, fewer say nothing, and bad ones are refused."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedrec.errors import BadMessage
from fedrec.secure_aggregation.secret_sharing import PRIME, SHARE_BYTES, Combiner, combine, random_element, split

SECRET = bytes(range(100, 132))


def element(value: int) -> bytes:
    return value.to_bytes(SHARE_BYTES, "little")


def recombined(points: Sequence[int], shares: Mapping[int, bytes]) -> bytes | None:
    """What the shares give, or nothing where they are refused."""
    try:
        return Combiner(points).secret(shares)
    except BadMessage:
        return None


def test_shares_are_the_polynomial_at_the_points():
    # 5 + 7 x + 11 x^2 by hand at 1, 2 and 4.
    coefficients = iter([7, 11])
    shares = split(element(5)[:32], 3, [1, 2, 4], random_element=lambda: next(coefficients))
    assert shares == [element(23), element(63), element(209)]
    assert combine({4: element(209), 1: element(23), 2: element(63)}, 3) == element(5)[:32]


def test_the_field_is_that_of_the_least_prime_above_all_secrets():
    def may_be_prime(number: int) -> bool:
        return all(pow(base, number - 1, number) == 1 for base in (2, 3, 5, 7))

    assert [step for step in range(1, 298) if may_be_prime(2**256 + step)] == [297]
    assert PRIME == 2**256 + 297


@given(
    secret=st.binary(min_size=32, max_size=32) | st.sampled_from([bytes(32), b"\xff" * 32]),
    points=st.lists(st.integers(1, 10_001), min_size=1, max_size=9, unique=True),
    data=st.data(),
)
def test_any_threshold_of_the_shares_gives_the_secret(secret, points, data):
    threshold = data.draw(st.integers(1, len(points)))
    shares = dict(zip(points, split(secret, threshold, points), strict=True))
    chosen = data.draw(st.permutations(points))[: data.draw(st.integers(threshold, len(points)))]
    assert combine({point: shares[point] for point in chosen}, threshold) == secret


def test_every_choice_of_three_of_five_gives_the_secret_and_two_do_not():
    shares = dict(zip(range(1, 6), split(SECRET, 3, range(1, 6)), strict=True))
    for chosen in itertools.combinations(shares, 3):
        assert Combiner(chosen).secret(shares) == SECRET
    for chosen in itertools.combinations(shares, 2):
        assert recombined(chosen, shares) != SECRET


@pytest.mark.parametrize("other", [bytes(32), b"\xff" * 32, SECRET[::-1]])
def test_fewer_shares_than_the_threshold_fit_every_secret(other):
    """With shares of 1 and 3 held, there is for any secret a polynomial through them: they say nothing."""
    held = split(SECRET, 3, [1, 2, 3])[::2]
    zeroth, first, third = (int.from_bytes(part, "little") for part in (other, *held))
    # Of a + b x + c x^2: first = a + b + c and third = a + 3 b + 9 c.
    c = (third - 3 * first + 2 * zeroth) * pow(6, -1, PRIME) % PRIME
    b = (first - zeroth - c) % PRIME
    coefficients = iter([b, c])
    assert split(other, 3, [1, 2, 3], random_element=lambda: next(coefficients))[::2] == held


def test_the_same_secret_is_never_shared_alike_twice():
    assert not set(split(SECRET, 2, [1, 2, 3])) & set(split(SECRET, 2, [1, 2, 3]))


def test_random_elements_are_spread_over_the_field():
    drawn = [random_element() for _ in range(2_000)]
    assert len(set(drawn)) == 2_000
    assert all(0 <= value < PRIME for value in drawn)
    # Of 2,000 fair coins each; 6 standard deviations, a false alarm once in 10^6 runs.
    assert all(abs(sum(value >> bit & 1 for value in drawn) - 1_000) < 135 for bit in range(256))


@pytest.mark.parametrize("points", [[], [1, 1], [0, 1, 2], [-1, 2], [1, 2]])
def test_points_that_would_give_the_secret_away_or_do_not_suffice_are_refused(points):
    with pytest.raises(ValueError, match=r"points must|threshold"):
        split(SECRET, 3, points)


@pytest.mark.parametrize("threshold", [0, -1, 4])
def test_thresholds_outside_the_shares_are_refused(threshold):
    with pytest.raises(ValueError, match="threshold"):
        split(SECRET, threshold, [1, 2, 3])


@pytest.mark.parametrize("secret", [b"", SECRET[:31], SECRET + b"\0"])
def test_secrets_of_another_length_are_refused(secret):
    with pytest.raises(ValueError, match="a secret of"):
        split(secret, 2, [1, 2, 3])


@pytest.mark.parametrize("bad", [b"", bytes(32), bytes(34), element(PRIME), element(2**264 - 1)])
def test_a_share_that_is_no_element_is_refused(bad):
    shares = dict(zip((1, 2, 3), split(SECRET, 3, [1, 2, 3]), strict=True))
    with pytest.raises(BadMessage):
        combine({**shares, 2: bad}, 3)


def test_too_few_shares_and_impossible_points_are_refused():
    shares = dict(zip((1, 2, 3), split(SECRET, 3, [1, 2, 3]), strict=True))
    with pytest.raises(BadMessage, match="2 shares of the 3"):
        combine({1: shares[1], 3: shares[3]}, 3)
    with pytest.raises(BadMessage, match="missing"):
        Combiner([1, 2, 4]).secret(shares)
    for points in ([], [1, 1, 2], [0, 1, 2], [-1, 2]):
        with pytest.raises(BadMessage):
            Combiner(points)


def test_shares_that_meet_above_all_secrets_are_refused():
    # The constant polynomial 2^256 is in the field, and no secret.
    with pytest.raises(BadMessage, match="no secret"):
        combine({1: element(2**256), 2: element(2**256)}, 2)


@given(place=st.integers(0, 2), bit=st.integers(0, 255))
def test_a_changed_share_never_gives_the_secret(place, bit):
    shares = split(SECRET, 3, [1, 2, 3])
    changed = bytearray(shares[place])
    changed[bit // 8] ^= 1 << bit % 8
    shares[place] = bytes(changed)
    assert recombined((1, 2, 3), dict(zip((1, 2, 3), shares, strict=True))) != SECRET
