"""Randomness that belongs to a shopper."""

import math

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from scipy import stats

from fedrec.privacy.draws import Draws, shopper_digests

DIGESTS = shopper_digests(range(20_000))
DRAWS = Draws.seeded("test", DIGESTS)  # a fixed key: nothing here can fail by chance


def test_what_a_shopper_draws_does_not_hang_on_the_others():
    order = np.random.default_rng(0).permutation(500)
    few = Draws(DRAWS.key, DIGESTS[:500])
    for draw in (lambda d: d.words(7), lambda d: d.normals(3), lambda d: d.coins(0.3), lambda d: d.uniforms(5)):
        np.testing.assert_array_equal(draw(few.take(order)), draw(few)[order])
        rest = np.delete(np.arange(500), 77)
        np.testing.assert_array_equal(draw(few.take(rest)), draw(few)[rest])


def test_an_order_is_the_same_shoppers_whatever_the_rows():
    few = Draws(DRAWS.key, DIGESTS[:50])
    shuffle = np.random.default_rng(1).permutation(50)
    np.testing.assert_array_equal(shuffle[few.take(shuffle).order()], few.order())


def test_words_are_aes_of_digest_and_counter():
    draws = Draws(bytes(range(32)), DIGESTS[:3])
    cipher = Cipher(algorithms.AES(draws.key), modes.ECB()).encryptor()
    block = bytearray(DIGESTS[1].tobytes())
    first = cipher.update(bytes(block))
    block[8] ^= 1
    second = cipher.update(bytes(block))
    np.testing.assert_array_equal(draws.words(6)[1], np.frombuffer(first + second, "<u4")[:6])


def test_purposes_and_keys_and_shoppers_differ():
    words = [DRAWS.of(purpose).words(4) for purpose in ("a", "b")]
    words += [DRAWS.words(4), Draws.fresh(DIGESTS).words(4), Draws.seeded("other", DIGESTS).words(4)]
    flat = np.concatenate(words).ravel()
    assert len(np.unique(flat)) > 0.9995 * len(flat)  # of 400,000 words some 19 meet by chance
    assert Draws.fresh(DIGESTS).key != Draws.fresh(DIGESTS).key


@pytest.mark.parametrize("rate", [0.001, 0.3, 0.5, 0.999])
def test_coins_fall_at_their_rate_and_independently(rate):
    first, second = DRAWS.of("x").coins(rate), DRAWS.of("y").coins(rate)
    sd = math.sqrt(rate * (1 - rate) / len(DRAWS))
    assert abs(first.mean() - rate) < 5 * sd
    assert abs((first & second).mean() - rate**2) < 5 * math.sqrt(rate**2 * (1 - rate**2) / len(DRAWS))


def test_everybody_takes_part_at_rate_one():
    assert DRAWS.coins(1.0).all()


def test_uniforms_and_normals_are_what_they_are_called():
    assert stats.kstest(DRAWS.of("u").uniforms(5).ravel(), "uniform").pvalue > 1e-3
    assert stats.kstest(DRAWS.of("n").normals(5).ravel().astype(float), "norm").pvalue > 1e-3


def test_empty_tables_draw_nothing():
    nobody = Draws(DRAWS.key, shopper_digests([]))
    assert nobody.words(3).shape == (0, 3)
    assert nobody.coins(0.5).shape == (0,)
    assert nobody.normals(0).shape == (0, 0)


def test_ids_are_told_apart():
    assert len({row.tobytes() for row in shopper_digests(["a", "b", "ab", "", "1"])}) == 5


def test_the_key_does_not_show():
    assert "key" not in repr(DRAWS)
    with pytest.raises(ValueError):
        Draws(b"short", DIGESTS)
