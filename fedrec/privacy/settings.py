"""What a scenario says about privacy before the data is known; with the federation's public numbers it is a promise."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from fedrec.errors import BadAssumption, BadDelta, BadEpsilon, ConfigError, TooFewHonestShops
from fedrec.privacy.spec import Mode, PrivacySpec, check_epsilon, one_significant_digit

FEWEST_SHOPS = 3
"""Fewest shops among which noise shares buy anything: of two, the honest one adds all the noise anyway."""

_EXPECTED_SHARE = 0.8
_MOST_DELTA = "1 / (10 x number of shoppers)"
_MAX_DRAWS = 1000


@dataclass(frozen=True)
class PrivacySettings:
    """Under which promises a comparison is repeated; without epsilon there is none.

    Attributes:
        epsilon: one or several, each a promise of its own; the lists that a run leaves are those of the first.
        delta: of each of them; needed with epsilon.
        mode: ``distributed`` (each shop adds a share of the noise) or ``local`` (each adds all of it).
        min_shops: n_min, fewest shops of a sum; None = four of five and at least 3, more where colluders call for more
            (``distributed``, or masked), the federation's own minimum (``local``), all of them for a benchmark.
        colluders: t, shops that may tell the coordinator their noise.
        max_shops_per_person: k, in how many shops one person may have an account.
        public_shoppers: declared number of the federation's shoppers; None = the data's own number, to one digit.
        max_shoppers: declared bound on that number; None = the data's own number, rounded up to one digit.
        shop_shoppers: declared number of shoppers by shop, which decides who keeps validation events back from what it
            releases; a shop that declares none counts with the data's own number, to one digit.
        noise_draws: how often the private rounds are repeated with new noise, for the intervals; every draw has a
            budget of its own.
        benchmark: allows ``colluders = 0``; the run says that its guarantee is not a deployable one.
    """

    epsilon: float | tuple[float, ...] | None = None
    delta: float | None = None
    mode: Mode = Mode.DISTRIBUTED
    min_shops: int | None = None
    colluders: int = 1
    max_shops_per_person: int = 1
    public_shoppers: int | None = None
    max_shoppers: int | None = None
    shop_shoppers: Mapping[str, int] = field(default_factory=dict)
    noise_draws: int = 3
    benchmark: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.noise_draws <= _MAX_DRAWS:
            raise ConfigError(f"privacy.noise_draws = {self.noise_draws}: give a whole number from 1 to {_MAX_DRAWS}")
        for shop, declared in self.shop_shoppers.items():
            if not declared >= 1:
                raise BadAssumption(f"privacy.shop_shoppers: {declared} for shop {shop!r}: declare at least 1")
        if self.epsilon is None:
            return
        if not self.epsilons:
            raise BadEpsilon("privacy.epsilon is an empty list: give a number above 0, or leave it out")
        if len({epsilon_name(epsilon) for epsilon in self.epsilons}) < len(self.epsilons):
            raise BadEpsilon(f"privacy.epsilon = {list(self.epsilons)}: gives the same epsilon twice")
        for epsilon in self.epsilons:
            check_epsilon(epsilon, "privacy.epsilon")
        if self.delta is None:
            raise ConfigError(
                f"epsilon = {epsilon_name(self.epsilons[0])} without delta: give --delta or privacy.delta too, the "
                f"chance at which the promise may fail; 1e-6 is usual, at most {_MOST_DELTA}"
            )
        # Refused here, before any data is read; the numbers that the data fills in are the most lenient ones.
        if self.public_shoppers is None and not 0 < self.delta <= 0.1:
            raise BadDelta(f"privacy.delta = {self.delta}: give a number above 0 and at most {_MOST_DELTA}")
        least = 1 if self.public_shoppers is None else self.public_shoppers
        fewest = max(self.colluders + 1, FEWEST_SHOPS) if self.min_shops is None else self.min_shops
        self._spec(self.epsilons[0], least, least if self.max_shoppers is None else self.max_shoppers, fewest)

    @property
    def epsilons(self) -> tuple[float, ...]:
        """The promised epsilons as given; none where the run promises nothing."""
        if self.epsilon is None:
            return ()
        return self.epsilon if isinstance(self.epsilon, tuple) else (self.epsilon,)

    def declared_shoppers(self, shop: str, num_shoppers: int) -> int:
        """The declared size of a shop, to one digit; the data's own number where it declares none."""
        return one_significant_digit(self.shop_shoppers.get(shop, num_shoppers))

    def spec(
        self,
        epsilon: float,
        *,
        num_shops: int,
        num_shoppers: int,
        least_answers: int | None = None,
        is_masked: bool = False,
    ) -> PrivacySpec:
        """The promise of one run.

        Args:
            epsilon: one of ``epsilons``.
            num_shops: on the roster.
            num_shoppers: the data's own number; where none is declared it counts as declared, to one digit.
            least_answers: the federation's own ``min_shops``; None = not given.
            is_masked: whether secure aggregation is on. The same ``min_shops`` is asked of ``distributed`` without it,
                whose noise is made for masks.
        Raises:
            TooFewHonestShops: ``distributed`` among fewer than three shops, masks for one shop, or no honest one left.
            BadAssumption: more shops are demanded than there are, or fewer than masks need.
            BadDelta: delta is too large for so many shoppers.
        """
        if self.mode is Mode.DISTRIBUTED and num_shops < FEWEST_SHOPS and not self.benchmark:
            raise TooFewHonestShops(
                f"{num_shops} {'shop' if num_shops == 1 else 'shops'}: shared noise needs at least {FEWEST_SHOPS}, for "
                "among fewer the honest one adds all the noise anyway; use --privacy-mode local"
            )
        if least_answers is not None and least_answers > num_shops:
            raise BadAssumption(
                f"federation.min_shops = {least_answers}: there are {num_shops} shops; give at most so many"
            )
        needs_masks = is_masked or self.mode is Mode.DISTRIBUTED
        fewest = self.min_shops
        if fewest is None:
            fewest = max(self._usual_min_shops(num_shops, needs_masks=needs_masks), least_answers or 1)
        if least_answers is not None and not fewest >= least_answers:
            raise BadAssumption(
                f"privacy.min_shops = {fewest}: must be at least federation.min_shops = {least_answers}"
            )
        if not fewest <= num_shops:
            raise BadAssumption(f"privacy.min_shops = {fewest}: there are {num_shops} shops; give at most so many")
        if needs_masks:
            check_masked(num_shops, min_shops=fewest, colluders=self.colluders, key="privacy")
        public = one_significant_digit(num_shoppers) if self.public_shoppers is None else self.public_shoppers
        most = max(public, _one_digit_up(num_shoppers)) if self.max_shoppers is None else self.max_shoppers
        return self._spec(epsilon, public, most, fewest)

    def _usual_min_shops(self, num_shops: int, *, needs_masks: bool) -> int:
        if self.benchmark:
            return num_shops
        if not needs_masks:
            return 1
        usual = usual_min_shops(num_shops, self.colluders)
        return usual if self.mode is Mode.LOCAL else max(FEWEST_SHOPS, usual)

    def _spec(self, epsilon: float, public_shoppers: int, max_shoppers: int, min_shops: int) -> PrivacySpec:
        assert self.delta is not None
        return PrivacySpec(
            epsilon=float(epsilon),
            delta=self.delta,
            mode=self.mode,
            public_shoppers=public_shoppers,
            max_shoppers=max_shoppers,
            min_shops=min_shops,
            colluders=self.colluders,
            max_shops_per_person=self.max_shops_per_person,
            is_benchmark=self.benchmark,
        )


def usual_min_shops(num_shops: int, colluders: int) -> int:
    """Fewest shops of a masked sum where nobody says it: four of five, and as many as the colluders call for."""
    expected = math.ceil(round(_EXPECTED_SHARE * num_shops, 9))
    return min(num_shops, max(expected, least_masked(num_shops, colluders)))


def least_masked(num_shops: int, colluders: int) -> int:
    """Fewest shops that secure aggregation allows in a sum: more than half of all and of those who collude.

    It is `fedrec.secure_aggregation.parameters.usual_threshold`, which says why.
    """
    return (num_shops + colluders) // 2 + 1


def check_masked(num_shops: int, *, min_shops: int, colluders: int, key: str) -> None:
    """Refuse what secure aggregation would refuse, in the words of a scenario.

    Args:
        key: section whose ``min_shops`` it is.
    Raises:
        TooFewHonestShops: there is no sum to hide in, or nobody honest in it.
        BadAssumption: too few shops in a sum.
    """
    if num_shops < 2:
        raise TooFewHonestShops(
            f"{num_shops} shop: secure aggregation needs at least 2; turn it off with --no-secure (federation.secure)"
        )
    least = least_masked(num_shops, colluders)
    if not (least <= num_shops and colluders < num_shops):
        raise TooFewHonestShops(
            f"privacy.colluders = {colluders} among {num_shops} shops: at least one honest shop must be in every sum; "
            f"give at most {num_shops - 1}"
        )
    if not min_shops >= least:
        raise BadAssumption(
            f"{key}.min_shops = {min_shops}: sums of {num_shops} shops, {colluders} of them colluding, need more than "
            f"({num_shops} + {colluders}) / 2 under secure aggregation; give {least} to {num_shops}, or leave it out"
        )


def epsilon_name(epsilon: float) -> str:
    """An epsilon as columns, folders and sentences name it: 0.5, 2."""
    return f"{epsilon:g}"


def _one_digit_up(count: int) -> int:
    """The least number of one significant digit that is no smaller: 6,040 -> 7,000."""
    unit = 10 ** (len(str(max(count, 1))) - 1)
    return max(1, math.ceil(count / unit)) * unit
