"""What a step of DP-SGD costs beside a plain step and beside Opacus: time and memory.

Run: python simulations/benchmarks/dp_sgd_speed.py [--only VAE-3700 ...] [--hooks-limit 4] [--without-hooks]
A step is forward, backward and Adam's update of a float32 network over one batch of 256 shoppers, made before. fedrec's
adds clipping (closed form, `fedrec.training.dp_sgd`) and noise from the operating system's randomness; Opacus' is its
own optimiser with its own noise (torch.normal), by ghost clipping or hooks. All take turns in one process on one
thread; the median of the processor time counts. Hooks hold a gradient for every shopper: where 256 of them take more
than --hooks-limit GB, they go in smaller pieces, one after the other. Peak memory: each in a process of its own, above
what it held before the network was made. "as in a round" is what a private round does, and not part of a target:
float64, vectors folded in, batches made and seats given by `SeatedGradients`, noise on the grid; no update.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import torch
from scipy import sparse

from fedrec.privacy.draws import Draws, shopper_digests
from fedrec.privacy.grid import SCALE
from fedrec.privacy.noise import SecureNoise
from fedrec.training.autoencoders import MultVae
from fedrec.training.dp_sgd import clip_weights, clipped_sum
from fedrec.training.ncf import NcfSettings, NeuMf
from fedrec.training.network import Batch, Network
from fedrec.training.seats import SeatedGradients

SHOPPERS = 256
CLIP_NORM = 0.1
NOISE_MULTIPLIER = 1.0
NEGATIVES = 4
PIECE = 2**19
"""Values that get their noise at once: it stays in the last-level cache."""
Step = Callable[[], None]


@dataclass(frozen=True)
class Setting:
    """A network over one batch.

    Attributes:
        make: the network from nothing.
        num_items: of the catalogue.
        bought: items of every shopper.
        micro_batch: shoppers that fedrec computes at once.
        make_for_opacus: the same network of layers that Opacus knows; None = ``make``.
    """

    make: Callable[[], Network]
    num_items: int
    bought: int
    micro_batch: int = SHOPPERS
    make_for_opacus: Callable[[], Network] | None = None

    def histories(self) -> sparse.csr_matrix:
        """CSR, (SHOPPERS, num_items)."""
        rng = np.random.default_rng(0)
        items = np.stack([rng.choice(self.num_items, self.bought, replace=False) for _ in range(SHOPPERS)])
        rows = np.repeat(np.arange(SHOPPERS), self.bought)
        shape = SHOPPERS, self.num_items
        return sparse.csr_matrix((np.ones(items.size, np.float32), (rows, items.ravel())), shape=shape)


def vae(num_items: int, *, has_sparse_input: bool = True) -> Setting:
    """Mult-VAE, num_items-600-200-600-num_items; for Opacus always with a dense first layer."""
    make = partial(MultVae, num_items, hidden=(600,), latent=200)
    return Setting(
        partial(make, has_sparse_input=has_sparse_input),
        num_items,
        bought=100,
        make_for_opacus=partial(make, has_sparse_input=False),
    )


SETTINGS = {
    "VAE-3700": vae(3700),
    "VAE-20000": vae(20_000),
    "VAE-3700-dense": vae(3700, has_sparse_input=False),
    "VAE-20000-dense": vae(20_000, has_sparse_input=False),
    # 250 pairs a shopper; item vectors of 64 in the product and in the tower 64-64
    "NeuMF-3700": Setting(
        lambda: NeuMf(3700, NcfSettings(factors=64, layers=1, negatives=NEGATIVES, max_pairs=250)),
        3700,
        bought=250 // (1 + NEGATIVES),
        micro_batch=128,
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--only", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--hooks-limit", type=float, default=4.0, help="GB of gradients that hooks may hold")
    parser.add_argument("--without-hooks", action="store_true", help="do not measure hooks, which take minutes")
    parser.add_argument("--memory", nargs=2, metavar=("SETTING", "STEP"), help="print one peak; for this script itself")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message="Full backward hook|Secure RNG")
    if options.memory:
        name, step = options.memory
        print(json.dumps(peak_bytes(SETTINGS[name], step, options.hooks_limit)))
        return
    print(f"torch {torch.__version__}, numpy {np.__version__}, {SHOPPERS} shoppers a step, {options.repeats} repeats")
    for name in options.only:
        report(name, options)


def report(name: str, options: argparse.Namespace) -> None:
    """Measure all steps of a setting and print them beside the targets."""
    setting = SETTINGS[name]
    kinds = [kind for kind in STEPS if kind != "opacus hooks" or not options.without_hooks]
    steps = {kind: STEPS[kind](setting, options.hooks_limit) for kind in kinds}
    took: dict[str, list[float]] = {kind: [] for kind in steps}
    for step in steps.values():
        step()
    for repeat in range(options.repeats):
        for kind, step in steps.items():
            if kind == "opacus hooks" and repeat:  # far slower than the rest
                continue
            start = time.thread_time()
            step()
            took[kind].append(time.thread_time() - start)
    milliseconds = {kind: 1e3 * statistics.median(times) for kind, times in took.items()}
    steps.clear()
    peaks = {kind: measured_peak(name, kind, options.hooks_limit) for kind in kinds}
    plain, ours = milliseconds["plain"], milliseconds["closed form"]
    num_values = sum(values.numel() for values in setting.make().parameters())
    print(f"\n{name}: {num_values:,} values")
    for kind, time_ms in milliseconds.items():
        print(
            f"  {kind:14s} {time_ms:9.1f} ms = {time_ms / plain:6.2f} x plain   "
            f"peak {peaks[kind] / 1e6:7.0f} MB = {peaks[kind] / peaks['plain']:5.2f} x plain"
        )
    rows = [
        ("closed form / plain, time", ours / plain, "<= 2"),
        ("ghost / closed form, time", milliseconds["opacus ghost"] / ours, ">= 2"),
        ("closed form / plain, peak", peaks["closed form"] / peaks["plain"], "<= 1.3"),
    ]
    if "opacus hooks" in milliseconds:
        rows.append(("hooks / closed form, time", milliseconds["opacus hooks"] / ours, ">= 10"))
    for label, ratio, target in rows:
        print(f"  {label:28s} {ratio:6.2f}   target {target}")


def measured_peak(name: str, kind: str, hooks_limit: float) -> int:
    """Peak memory of one step's process, in bytes."""
    command = [sys.executable, __file__, "--memory", name, kind, "--hooks-limit", str(hooks_limit)]
    return int(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))


def peak_bytes(setting: Setting, kind: str, hooks_limit: float) -> int:
    """Peak of this process over two steps, above what it held before."""
    import opacus  # noqa: F401  (so that its size is in nobody's peak)

    torch.ones(8, 8, requires_grad=True).square().sum().backward()
    before = most_held()
    step = STEPS[kind](setting, hooks_limit)
    for _ in range(2):
        step()
    return most_held() - before


def most_held() -> int:
    """Bytes that this process ever held at once (Linux); getrusage would count its parent's."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def prepare(setting: Setting) -> tuple[Network, Batch]:
    """A network and its batch, the same each time."""
    network, histories = setting.make(), setting.histories()
    draws = Draws.seeded("benchmark", shopper_digests(range(SHOPPERS)))
    return network, network.batch(histories, draws, vectors_of(network))


def of_opacus(setting: Setting) -> Setting:
    """With layers that Opacus knows."""
    return replace(setting, make=setting.make_for_opacus or setting.make)


def split(batch: Batch, at_once: int) -> list[Batch]:
    """The batch in pieces of so many shoppers."""
    starts = range(0, SHOPPERS, at_once)
    return [{name: values[start : start + at_once] for name, values in batch.items()} for start in starts]


def vectors_of(network: Network) -> torch.Tensor | None:
    if not network.num_shopper_values:
        return None
    shape = SHOPPERS, network.num_shopper_values
    return 0.1 * torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(network.floating)


def plain(setting: Setting, hooks_limit: float) -> Step:
    """No privacy."""
    network, batch = prepare(setting)
    optimiser = torch.optim.Adam(network.parameters(), fused=True)

    def step() -> None:
        optimiser.zero_grad()
        network(batch).sum().backward()
        optimiser.step()

    return step


def closed_form(setting: Setting, hooks_limit: float) -> Step:
    """Clipped in closed form, with noise in whole grid units."""
    network, batch = prepare(setting)
    optimiser = torch.optim.Adam(network.parameters(), fused=True)
    pieces = split(batch, setting.micro_batch)
    totals = {name: torch.zeros_like(values, requires_grad=False) for name, values in network.named_parameters()}
    for name, values in network.named_parameters():
        values.grad = totals[name]

    def step() -> None:
        optimiser.zero_grad(set_to_none=False)
        for piece in pieces:
            clipped_sum(network, piece, lambda norms: clip_weights(norms, CLIP_NORM), totals=totals)
        for total in totals.values():
            in_memory = total if total.is_contiguous() else total.T
            for part in in_memory.view(-1).split(PIECE):
                noise = SecureNoise("benchmark").integers(NOISE_MULTIPLIER * SCALE, len(part))
                part.add_(torch.from_numpy(noise.astype(np.float32)), alpha=CLIP_NORM / SCALE)
        optimiser.step()

    return step


def as_in_a_round(setting: Setting, hooks_limit: float) -> Step:
    """What a shop does in a private round, without the door's own work beyond noise."""
    network = setting.make().double()
    histories = setting.histories()
    draws = Draws.seeded("benchmark", shopper_digests(range(SHOPPERS)))

    def step() -> None:
        total, _ = SeatedGradients(network, histories, draws).clipped(CLIP_NORM)
        total *= SCALE / CLIP_NORM
        units = np.rint(total, out=total).astype(np.int64)
        units += SecureNoise("benchmark").integers(NOISE_MULTIPLIER * SCALE, len(total))

    return step


def ghost(setting: Setting, hooks_limit: float) -> Step:
    """Opacus' ghost clipping, its optimiser, its noise."""
    from opacus.grad_sample import GradSampleModuleFastGradientClipping
    from opacus.optimizers import DPOptimizerFastGradientClipping
    from opacus.utils.fast_gradient_clipping_utils import DPLossFastGradientClipping

    network, batch = prepare(of_opacus(setting))
    module = GradSampleModuleFastGradientClipping(network, max_grad_norm=CLIP_NORM, loss_reduction="sum")
    optimiser = DPOptimizerFastGradientClipping(
        torch.optim.Adam(network.parameters(), fused=True),
        noise_multiplier=NOISE_MULTIPLIER,
        max_grad_norm=CLIP_NORM,
        expected_batch_size=SHOPPERS,
        loss_reduction="sum",
    )

    class Losses:
        reduction = "sum"

        def __call__(self, losses: torch.Tensor) -> torch.Tensor:
            return losses

    criterion = DPLossFastGradientClipping(module, optimiser, Losses(), "sum")

    def step() -> None:
        optimiser.zero_grad()
        criterion(module(batch)).backward()
        optimiser.step()

    return step


def hooks(setting: Setting, hooks_limit: float) -> Step:
    """Opacus' hooks, its optimiser, its noise."""
    from opacus.grad_sample import GradSampleModule
    from opacus.optimizers import DPOptimizer

    network, batch = prepare(of_opacus(setting))
    num_values = sum(values.numel() for values in network.parameters())
    at_once = max(1, min(SHOPPERS, int(hooks_limit * 1e9 / (4 * num_values))))
    pieces = split(batch, at_once)
    module = GradSampleModule(network, loss_reduction="sum")
    optimiser = DPOptimizer(
        torch.optim.Adam(network.parameters(), fused=True),
        noise_multiplier=NOISE_MULTIPLIER,
        max_grad_norm=CLIP_NORM,
        expected_batch_size=SHOPPERS,
        loss_reduction="sum",
    )

    def step() -> None:
        optimiser.zero_grad()
        for place, piece in enumerate(pieces):
            optimiser.signal_skip_step(do_skip=place + 1 < len(pieces))
            module(piece).sum().backward()
            optimiser.step()
            optimiser.zero_grad()

    return step


STEPS: dict[str, Callable[[Setting, float], Step]] = {
    "plain": plain,
    "closed form": closed_form,
    "as in a round": as_in_a_round,
    "opacus ghost": ghost,
    "opacus hooks": hooks,
}

if __name__ == "__main__":
    main()
