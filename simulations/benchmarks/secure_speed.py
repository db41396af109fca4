"""What secure aggregation costs, beside Flower 1.41's SecAgg+ on the same vectors.

Run: python simulations/benchmarks/secure_speed.py [--output FOLDER] [--quick | --full] [--parts table shops ...]
Prints a JSON line for each measurement; with --output also writes FOLDER/secure_speed.json, and plots of the cost
against the number of shops and of values. Both sides begin with float32 values, round them and end with the sum;
fedrec's is compared with the plain sum of the rounded values bit for bit. They take turns in one process on one thread,
without a network; processor time counts, a shop's own as the median over shops. fedrec's set-up (checked signatures,
keys and shares for eight rounds) is done once for those rounds, Flower's for each round. Whole rounds of Flower's go up
to --flower-limit shops: its complete graph takes more than the square of their number. --quick is for trying it out;
--full measures Flower's graph of 100 as well.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import json
import os
import statistics
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
from flower_secagg import FlowerRound, setup_of_one_client

from fedrec.federation.run_record import num_cores, package_versions
from fedrec.privacy.grid import Grid, choose_grid
from fedrec.secure_aggregation.coordinator_session import CoordinatorSession
from fedrec.secure_aggregation.keys import IdentityKey
from fedrec.secure_aggregation.parameters import Parameters, usual_threshold
from fedrec.secure_aggregation.shop_session import ShopSession

CLIP = 8.0
COLLUDERS = 1
ANSWERING = 0.8
"""Share of the shops that a sum needs, where no threshold is given."""
PIECE = 2**15
CONTEXT = hashlib.sha256(b"a plan").digest()


@dataclass(frozen=True)
class Sizes:
    """What is measured.

    Attributes:
        table_values: of the rounds that decide, at 10 shops.
        repeats: of the rounds that decide, both sides in turn.
        shops, values: that costs are drawn against.
        memory: (shops, values) of rounds whose peak is taken.
        flower_limit: most shops of a whole round of Flower's.
    """

    table_values: int
    repeats: int
    shops: tuple[int, ...]
    values: tuple[int, ...]
    memory: tuple[tuple[int, int], ...]
    flower_limit: int


SIZES = {
    "quick": Sizes(10**6, 1, (10, 30), (10**4, 10**5), ((10, 10**5), (20, 10**5)), 10),
    "usual": Sizes(
        10**7,
        3,
        (10, 30, 100, 300, 1000),
        (10**4, 10**5, 10**6, 10**7),
        ((10, 10**6), (20, 10**6), (100, 10**7)),
        50,
    ),
    "full": Sizes(
        10**7,
        3,
        (10, 20, 30, 50, 100, 200, 500, 1000),
        (10**4, 10**5, 10**6, 10**7),
        ((10, 10**6), (20, 10**6), (50, 10**6), (100, 10**6), (100, 10**7)),
        100,
    ),
}
MOST_FLOWER_MEMORY = 10**8
"""Values of all shops together: Flower's server holds every upload."""


@dataclass
class Cost:
    """Processor seconds and bytes of one set-up and one round.

    Attributes:
        neighbours: k; of Flower the shares of a secret less one.
        setup_shop_s: of one shop, for all rounds of the batch (Flower: for its one round).
        setup_coordinator_s: of the coordinator, for all shops.
        round_shop_s: of one shop: rounds its values and masks them.
        mask_shop_s: the masks' part of it (not known of Flower).
        sum_s: of the coordinator, all uploads.
        unmask_s: of the coordinator, from the shares to the sum.
        upload_bytes_per_value, setup_shop_bytes: sent by one shop; received and sent.
    """

    who: str
    shops: int
    values: int
    dropped: int
    threshold: int
    neighbours: int
    setup_shop_s: float = 0.0
    setup_coordinator_s: float = 0.0
    round_shop_s: float = 0.0
    mask_shop_s: float = 0.0
    sum_s: float = 0.0
    unmask_s: float = 0.0
    upload_bytes_per_value: float = 0.0
    setup_shop_bytes: int = 0


class Clock:
    """Processor time by purpose, each call apart; the coordinator's peak of memory where it is traced."""

    def __init__(self) -> None:
        self.took: dict[str, list[float]] = {}
        self.peak_bytes = 0

    def __call__(self, purpose: str, call: Callable[..., Any], *arguments: Any) -> Any:
        """The call's result."""
        if tracemalloc.is_tracing():
            tracemalloc.reset_peak()
        started = time.process_time()
        result = call(*arguments)
        self.took.setdefault(purpose, []).append(time.process_time() - started)
        if tracemalloc.is_tracing() and purpose in ("add up", "unmask"):
            self.peak_bytes = max(self.peak_bytes, tracemalloc.get_traced_memory()[1])
        return result

    def total(self, purpose: str) -> float:
        return sum(self.took.get(purpose, []))

    def one(self, *purposes: str) -> float:
        """Sum of the purposes' medians."""
        return sum(statistics.median(self.took[purpose]) for purpose in purposes)


class Federation:
    """Shops and a coordinator of fedrec, with one set-up, ready for a round."""

    def __init__(self, num_shops: int, *, threshold: int | None = None) -> None:
        identities = [IdentityKey.generate() for _ in range(num_shops)]
        names, keys = [f"shop-{place:04d}" for place in range(num_shops)], [each.public for each in identities]
        least = usual_threshold(num_shops, COLLUDERS)
        needed = threshold if threshold is not None else least
        fewest = threshold if threshold is not None else max(least, int(ANSWERING * num_shops))
        hexadecimal = tuple(key.raw.hex() for key in keys)
        self.parameters = Parameters(tuple(names), hexadecimal, fewest, COLLUDERS, needed)
        self.coordinator = CoordinatorSession(self.parameters, "benchmark")
        self.shops = {
            name: ShopSession(self.parameters, name, identity, "benchmark")
            for name, identity in zip(names, identities, strict=True)
        }
        self.clock = Clock()
        self.setup_bytes = 0
        self._set_up()

    def _set_up(self) -> None:
        clock, coordinator = self.clock, self.coordinator
        invite = coordinator.invite(0, self.parameters.rounds_per_setup)
        for name, shop in self.shops.items():
            advert = clock("advertise", shop.advertise, invite)
            clock("coordinator sets up", coordinator.add_advert, name, advert)
        adverts = clock("coordinator sets up", coordinator.adverts)
        deal = delivery = b""
        for name, shop in self.shops.items():
            deal = clock("deal", shop.deal, adverts)
            clock("coordinator sets up", coordinator.add_deal, name, deal)
        clock("coordinator sets up", coordinator.close_setup)
        for name, shop in self.shops.items():
            delivery = clock("coordinator sets up", coordinator.delivery, name)
            clock("accept", shop.accept, delivery)
        self.setup_bytes = sum(map(len, (invite, advert, adverts, deal, delivery)))

    def round(self, size: int, *, dropped: Iterable[int] = ()) -> Cost:
        """One round; the sum is compared with the plain one."""
        clock, coordinator = self.clock, self.coordinator
        grid = choose_grid(CLIP, max_shoppers=len(self.shops), noise_sd_units=0.0)
        gone = {name for place, name in enumerate(self.shops) if place in set(dropped)}
        plain = np.zeros(size, grid.ring_dtype)
        coordinator.open_round(0, CONTEXT, size, grid.ring_dtype)
        for place, (name, shop) in enumerate(self.shops.items()):
            if name not in gone:
                values = clock("round", on_grid, vector(place, size), grid)
                np.add(plain, values, out=plain)
                clock("mask", shop.mask, 0, CONTEXT, values)
                clock("add up", coordinator.add_upload, name, CONTEXT, values)
        total = self._open(gone)
        if not np.array_equal(total, plain):
            raise SystemExit("the sum is not the plain sum")
        return Cost(
            "fedrec",
            len(self.shops),
            size,
            len(gone),
            self.parameters.threshold,
            min(self.parameters.num_neighbours, len(self.shops) - 1),
            setup_shop_s=clock.one("advertise", "deal", "accept"),
            setup_coordinator_s=clock.total("coordinator sets up"),
            round_shop_s=clock.one("round", "mask"),
            mask_shop_s=clock.one("mask"),
            sum_s=clock.total("add up"),
            unmask_s=clock.total("unmask"),
            upload_bytes_per_value=grid.ring_dtype.itemsize,
            setup_shop_bytes=self.setup_bytes,
        )

    def _open(self, gone: set[str]) -> np.ndarray:
        """Have the survivors sign and reveal, and unmask."""
        clock, coordinator = self.clock, self.coordinator
        alive = {name: shop for name, shop in self.shops.items() if name not in gone}
        survivors = coordinator.survivors()
        for name, shop in alive.items():
            coordinator.add_signature(name, clock("sign", shop.sign, survivors))
        signatures = coordinator.signatures()
        for name, shop in alive.items():
            shares = clock("reveal", shop.reveal, signatures)
            clock("unmask", coordinator.add_shares, name, shares)
        return clock("unmask", coordinator.total)


def vector(place: int, size: int) -> np.ndarray:
    """A shop's float32 values."""
    return np.random.default_rng(place).normal(0.0, 0.5, size).astype(np.float32)


def on_grid(values: np.ndarray, grid: Grid) -> np.ndarray:
    """Ring elements of float values, rounded in pieces that fit into the cache."""
    elements = np.empty(len(values), grid.ring_dtype)
    for start in range(0, len(values), PIECE):
        part = slice(start, start + PIECE)
        rounded = np.rint(values[part].astype(np.float64) / grid.unit).astype(np.int64)
        elements[part] = grid.wrap(grid.saturate(rounded))
    return elements


def flower_round(num_shops: int, size: int, threshold: int, *, dropped: Iterable[int], shares: int | None) -> Cost:
    """One round of Flower's; the average is compared with the plain one."""
    dropped = [place + 1 for place in dropped]
    done = FlowerRound(num_shops, threshold, lambda node: vector(node - 1, size), dropped=dropped, num_shares=shares)
    server = done.run()
    took = {stage: statistics.median(times) for stage, times in done.clients.took_s.items()}
    return Cost(
        "Flower",
        num_shops,
        size,
        len(dropped),
        threshold,
        (shares or num_shops) - 1,
        setup_shop_s=took["setup"] + took["share_keys"],
        setup_coordinator_s=server["setup_stage"] + server["share_keys_stage"],
        round_shop_s=took["collect_masked_vectors"],
        sum_s=server["collect_masked_vectors_stage"],
        unmask_s=server["unmask_stage"],
        upload_bytes_per_value=done.clients.upload_bytes / size,
    )


def compare(num_shops: int, size: int, *, threshold: int, dropped: Iterable[int], repeats: int) -> list[Cost]:
    """Both sides in turn with the same threshold, every shop everybody's neighbour; medians."""
    costs: dict[str, list[Cost]] = {"fedrec": [], "Flower": []}
    for _ in range(repeats):
        costs["fedrec"].append(Federation(num_shops, threshold=threshold).round(size, dropped=dropped))
        costs["Flower"].append(flower_round(num_shops, size, threshold, dropped=dropped, shares=None))
        gc.collect()
    return [median(each) for each in costs.values()]


def median(costs: list[Cost]) -> Cost:
    """A cost with the medians of equal measurements."""
    rows = [asdict(cost) for cost in costs]
    fields = {name: statistics.median(row[name] for row in rows) for name in rows[0] if name != "who"}
    return Cost(who=costs[0].who, **fields)


def measure_table(sizes: Sizes) -> list[Cost]:
    """The rounds and set-ups that decide."""
    rows = compare(10, sizes.table_values, threshold=6, dropped=(), repeats=1)
    rows += compare(10, sizes.table_values, threshold=6, dropped=(2, 6), repeats=sizes.repeats)
    show(rows)
    if sizes.flower_limit >= 50:
        rows += compare(50, 10**5, threshold=30, dropped=(), repeats=1)
    rows.append(Federation(50, threshold=30).round(10**5, dropped=(2, 6)))
    if sizes.flower_limit >= 50:
        rows.append(Federation(200, threshold=101).round(10**4))
        rows.append(federation := Federation(200).round(10**4))
        # One client's set-up alone, with the others' keys at hand; a whole round of 200 does not end.
        for shares, threshold in ((200, 101), (federation.neighbours + 1, federation.neighbours // 2)):
            took_s = setup_of_one_client(200, threshold, shares)
            rows.append(Cost("Flower", 200, 0, 0, threshold, shares - 1, setup_shop_s=took_s))
    show(rows[4:])
    return rows


def measure_shops(sizes: Sizes) -> list[Cost]:
    """Cost against the number of shops, an eighth of whom drop out."""
    rows = []
    for num_shops in sizes.shops:
        dropped = range(0, num_shops, 8)
        costs = [Federation(num_shops).round(10**5, dropped=dropped)]
        if num_shops <= sizes.flower_limit:
            threshold = usual_threshold(num_shops, COLLUDERS)
            costs.append(flower_round(num_shops, 10**5, threshold, dropped=dropped, shares=None))
        show(costs)
        rows += costs
    return rows


def measure_values(sizes: Sizes) -> list[Cost]:
    """Cost against the number of values, ten shops of whom one drops out."""
    rows = []
    for size in sizes.values:
        rows += compare(10, size, threshold=6, dropped=(4,), repeats=1)
        show(rows[-2:])
    return rows


def measure_memory(sizes: Sizes) -> list[dict[str, Any]]:
    """The coordinator's peak in a round, all that it holds at once, in bytes a value."""
    rows = []
    for num_shops, size in sizes.memory:
        row: dict[str, Any] = {"shops": num_shops, "values": size}
        federation = Federation(num_shops)
        gc.collect()
        tracemalloc.start()
        federation.round(size)
        # Not the coordinator's: the plain sum that the result is compared with.
        row["fedrec"] = federation.clock.peak_bytes / size - 4
        tracemalloc.stop()
        if num_shops <= max(20, sizes.flower_limit) and num_shops * size <= MOST_FLOWER_MEMORY:
            row["Flower"] = flower_memory(num_shops, size)
        rows.append(row)
        print(json.dumps(row), flush=True)
    return rows


def flower_memory(num_shops: int, size: int) -> float:
    """The peak of Flower's server while it has the uploads, in bytes a value."""
    flower = FlowerRound(num_shops, usual_threshold(num_shops, COLLUDERS), lambda node: vector(node - 1, size))
    flower.stage("setup_stage")
    flower.stage("share_keys_stage")
    gc.collect()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    flower.stage("collect_masked_vectors_stage")
    tracemalloc.stop()
    return (flower.peak_bytes - before) / size


def show(costs: Iterable[Cost]) -> None:
    """A JSON line a cost, and one to read on the error stream."""
    for cost in costs:
        print(json.dumps(asdict(cost)), flush=True)
        print(
            f"{cost.who:7s} {cost.shops:5d} shops, {cost.neighbours:4d} neighbours, {cost.values:9,d} values, "
            f"{cost.dropped:3d} dropped: set-up {cost.setup_shop_s:7.3f} s a shop, round {cost.round_shop_s:7.4f} s a "
            f"shop (masks {cost.mask_shop_s:.4f}), sum {cost.sum_s:6.3f} s, unmask {cost.unmask_s:7.3f} s, "
            f"{cost.upload_bytes_per_value:.1f} bytes a value",
            file=sys.stderr,
        )


PANELS = {
    "setup_shop_s": "set-up, one shop",
    "round_shop_s": "rounding and masks, one shop",
    "unmask_s": "unmasking, coordinator",
}


def plot(costs: list[Cost], against: str, path: Path) -> None:
    """Processor seconds against one field of the costs, both axes logarithmic."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(1, len(PANELS), figsize=(12, 3.6), layout="constrained")
    for panel, (field, title) in zip(panels, PANELS.items(), strict=True):
        for who, colour, marker in (("fedrec", "#1f5fa8", "o"), ("Flower", "#c2571a", "s")):
            mine = [cost for cost in costs if cost.who == who]
            across = [getattr(cost, against) for cost in mine]
            panel.loglog(across, [getattr(cost, field) for cost in mine], color=colour, marker=marker, label=who)
        panel.set_title(title, fontsize=10)
        panel.set_xlabel(f"number of {against}")
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("processor seconds")
    panels[0].legend(frameon=False)
    figure.savefig(path, dpi=150)
    plt.close(figure)


MEASURES: dict[str, Callable[[Sizes], list[Cost]]] = {
    "table": measure_table,
    "shops": measure_shops,
    "values": measure_values,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="folder for a JSON file and the plots")
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true")
    size.add_argument("--full", action="store_true")
    parser.add_argument("--flower-limit", type=int, help="most shops of a whole round of Flower's")
    parser.add_argument("--parts", nargs="+", choices=[*MEASURES, "memory"], default=[*MEASURES, "memory"])
    options = parser.parse_args()
    sizes = SIZES["quick" if options.quick else "full" if options.full else "usual"]
    if options.flower_limit is not None:
        sizes = replace(sizes, flower_limit=options.flower_limit)
    result: dict[str, Any] = {"cores": num_cores(), **package_versions()}
    for part in options.parts:
        if part == "memory":
            result[part] = measure_memory(sizes)
            continue
        costs = MEASURES[part](sizes)
        result[part] = [asdict(cost) for cost in costs]
        if part != "table" and options.output is not None:
            options.output.mkdir(parents=True, exist_ok=True)
            plot(costs, part, options.output / f"secure_speed_{part}.png")
    if options.output is not None:
        options.output.mkdir(parents=True, exist_ok=True)
        (options.output / "secure_speed.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
