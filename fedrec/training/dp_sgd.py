"""Differentially private SGD where the unit is a shopper: clipped sums of per-shopper gradients, by two engines.

The guarantee, from top to bottom. `ShopperGradients.clipped` adds up w_u g_u over shoppers u, w_u = min(1, C / norm_u)
(`clip_weights`; 0 where norm_u is not finite). Take one shopper away: the sum loses her w_u g_u, of norm at most C, and
nothing else, if

1. w_v and g_v of everybody else stay as they were: they follow from v's own row of the histories, her own draws, her
   private vector (which `Network.fold_in` makes of the same) and the round's arrays. So a network must not mix
   shoppers: `recording.layers_of` refuses layers that do, `network_check.check_network` tries the rest;
2. norm_u is not below the norm of the very g_u that is added.

``closed-form`` (the fast one) does one forward and one backward pass, of the summed losses: by (1), row u of what comes
back to a layer's outputs is the derivative of u's loss alone. That and the layer's inputs are recorded, and norms and
weighted sums both follow from these (`fedrec.training.layer_rules`), so (2) holds layer by layer; squared norms of
layers add up because no parameter has two of them (`recording.layers_of`). A way from a parameter to a loss that went
past the records would make g_u wrong, but bounded. In ``opacus-ghost``, whose sum is a second backward pass, it would
be added without having been measured: hence `recording.refuse_unseen` looks for such ways in autograd's graph, at every
step, for every engine. ``opacus`` is Opacus 1.6's machinery for the same two numbers, the oracle and the way for layers
without a rule; its noise, samplers and optimisers are not used.

(1) and (2) hold up to rounding, which `rounding_slack` bounds. A row's last bits may hang on the batch's shape, so
private steps take `fedrec.training.seats.SeatedGradients` in place of `ShopperGradients`: this file's `ClosedForm` and
`clip_weights` over batches in which those bits are her own too. No noise is drawn here, and nothing is divided by a
number of shoppers: the door (`fedrec.federation.release`) does the first, public numbers the second.
"""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from scipy import sparse
from torch import Tensor, nn

from fedrec.errors import BadAssumption, ConfigError, NoPrivateVariant
from fedrec.privacy.draws import Draws
from fedrec.training.layer_rules import LEAST_SHARE, LayerGradients, SparseLinear, TiedAutoencoder
from fedrec.training.network import Batch, Network, threads_for
from fedrec.training.recording import (
    Layer,
    calls_of,
    check_losses,
    graph_edges,
    layers_of,
    num_shoppers_of,
    refuse_unseen,
    unseen,
)

if TYPE_CHECKING:
    from opacus.grad_sample import GradSampleHooks

Totals = Mapping[str, Tensor]
"""Sums of gradients by the parameter's name, each in its parameter's shape."""


class PerShopper(Protocol):
    """Gradients of the shoppers of one micro-batch, without one vector each.

    Attributes:
        norms: float64, (num_shoppers,): L2 norm of each shopper's whole gradient.
    """

    norms: Tensor

    def add(self, weights: Tensor, totals: Totals) -> None:
        """Add sum_u weights[u] g_u to ``totals``; weights float64. Weight 0 leaves out even what is not finite."""


Engine = Callable[[Network, Batch], PerShopper]

_LEAST_BOUND = 1e-12


class ShopperGradients:
    """The gradients of some shoppers' losses by all shared parameters, in micro-batches.

    The parameters must stay as they are while the object is used, and no other thread may use the network.
    """

    def __init__(
        self,
        network: Network,
        histories: sparse.csr_matrix,
        draws: Draws | None,
        *,
        vectors: Tensor | None = None,
        engine: str = "closed-form",
        micro_batch: int = 256,
    ) -> None:
        """Args:
            network: float64 where a guarantee is wanted; see `rounding_slack`.
            histories: CSR, (num_shoppers, num_items).
            draws: of these shoppers; None = nothing random.
            vectors: (num_shoppers, num_shopper_values); private vectors where the network has such.
            engine: a key of `ENGINES`.
            micro_batch: shoppers computed at once; bounds the memory and changes nothing else, up to rounding.

        Raises:
            ConfigError: no such engine, or fewer than one shopper at once.
            NoPrivateVariant: a layer that cannot be used.
        """
        if engine not in ENGINES:
            raise ConfigError(f"engine = {engine!r}: one of {', '.join(ENGINES)}")
        if not micro_batch >= 1:
            raise ConfigError(f"micro_batch = {micro_batch}: at least 1 shopper")
        num_shoppers = histories.shape[0]
        for name, held in (("draws", draws), ("vectors", vectors)):
            if held is not None and len(held) != num_shoppers:
                raise ValueError(f"{name} of {len(held)} shoppers for {num_shoppers} histories")
        self._network, self._histories, self._draws, self._vectors = network, histories, draws, vectors
        self._engine, self._micro_batch = ENGINES[engine], micro_batch
        self._only_part: PerShopper | None = None
        if num_shoppers:
            self._engine(network, self._batch(_longest(histories[:micro_batch])))  # a network that cannot be used fails

    def norms(self) -> np.ndarray:
        """float64, (num_shoppers,): L2 norm of each shopper's gradient."""
        norms = np.zeros(self._histories.shape[0])
        for rows, part in self._parts():
            norms[rows] = part.norms.cpu().numpy()
            if len(part.norms) == len(norms):
                self._only_part = part
        return norms

    def total(self, weights: np.ndarray) -> np.ndarray:
        """The weighted sum of gradients.

        Args:
            weights: float64, (num_shoppers,); 0 leaves a shopper out.
        Returns:
            float64, (num_values,): flat, in the order of the network's parameters.
        """
        total, views = zero_totals(self._network)
        for rows, part in self._parts():
            part.add(torch.from_numpy(weights[rows]).to(part.norms.device), views)
        return total.cpu().numpy()

    def clipped(self, bound: float) -> tuple[np.ndarray, np.ndarray]:
        """The sum of gradients, each scaled down to an L2 norm of at most ``bound``, in one pass.

        Args:
            bound: C >= 1e-12, public.
        Returns:
            float64 (num_values,), float64 (num_shoppers,): the sum, and the norms before.
        Raises:
            BadAssumption: bound is below that, or not finite.
        Guarantee: with or without any one shopper, the sum differs by at most C (1 + `rounding_slack`) in L2, for a
            float64 network that does not mix shoppers and parameters that nobody chose for their rounding (others:
            `fedrec.training.seats`). A shopper whose norm is not finite counts as the zero vector.
        Source: Abadi et al. 2016, arXiv:1607.00133, Algorithm 1; a sample is a shopper.
        """
        check_bound(bound)
        total, views = zero_totals(self._network)
        norms = np.zeros(self._histories.shape[0])
        for rows, part in self._parts():
            part.add(clip_weights(part.norms, bound), views)
            norms[rows] = part.norms.cpu().numpy()
        return total.cpu().numpy(), norms

    def _parts(self) -> Iterator[tuple[slice, PerShopper]]:
        """Micro-batches: their rows and gradients."""
        num_shoppers = self._histories.shape[0]
        if self._only_part is not None:
            yield slice(0, num_shoppers), self._only_part
            return
        with threads_for(self._network, self._micro_batch):
            for start in range(0, num_shoppers, self._micro_batch):
                rows = slice(start, min(start + self._micro_batch, num_shoppers))
                yield rows, self._engine(self._network, self._batch(rows))

    def _batch(self, rows: slice) -> Batch:
        draws = None if self._draws is None else self._draws.take(np.arange(rows.start, rows.stop))
        vectors = None if self._vectors is None else self._vectors[rows]
        return self._network.batch(self._histories[rows], draws, vectors)


def clipped_sum(
    network: Network,
    batch: Batch,
    weigh: Callable[[Tensor], Tensor],
    *,
    engine: str = "closed-form",
    totals: Totals | None = None,
) -> tuple[Totals, Tensor]:
    """The weighted sum of the gradients of one micro-batch, where weights follow from norms.

    Args:
        network: whose loss is taken.
        batch: of some shoppers, maybe none.
        weigh: weights from norms, both float64 (num_shoppers,); such as `clip_weights` with a bound.
        engine: a key of `ENGINES`.
        totals: by parameter, what to add to in place; None = zeros in the network's type.
    Returns:
        Totals with the weighted sums added; norms.
    """
    gradients = ENGINES[engine](network, batch)
    if totals is None:
        totals = {name: torch.zeros_like(values, requires_grad=False) for name, values in network.named_parameters()}
    gradients.add(weigh(gradients.norms), totals)
    return totals, gradients.norms


def clip_weights(norms: Tensor, bound: float) -> Tensor:
    """min(1, bound / norm), and 0 where the norm is not finite."""
    return torch.where(norms.isfinite(), (bound / norms).clamp(max=1), 0)


def rounding_slack(
    num_shoppers: int, *, longest_sum: int, addends: int = 1, at_once: int | None = None, spread: float = 0.0
) -> float:
    """By how much float64 rounding may lift the sensitivity of `ShopperGradients.clipped` above C, as a share of C.

    Args:
        num_shoppers: a public bound on the shoppers of one sum, N.
        longest_sum: most products in one inner product or norm, m: of the widest layer, the longest list, or a gradient
            that is written out.
        addends: most pieces, L, as which a shopper's gradient of one layer is added: 1 where it is an outer product or
            written out, 2 of a `TiedAutoencoder`, as many as calls in `layer_rules.SumsOfOuterProducts`.
        at_once: shoppers of a batch, S, whose pieces are added up before they join the sum; None = N.
        spread: most by which a shopper's own gradient, relative to its norm, changes with who else is in the
            micro-batch: another shape of a matrix product adds up in another order.
    Returns:
        4 u m for the norm of the removed shopper (a square that is a sum of m products, and its root); for two sums,
        with her and without, in any order, 2 u N^2 for N addends of norm up to C, and, where L > 1, 2 u (N / S) (S L)
        (S R) for N / S sums of S L pieces each: pieces of one shopper may cancel, and are up to R C long together, R =
        1 / `layer_rules.LEAST_SHARE`; spread x N for the others. u = 2^-53. A worst case: errors of both signs make it
        about the square root. For N <= 2^20, which `Terms.check_step` demands, S L <= 2^16 (seats: at most 128 shoppers
        with lists of a few, 16 of 500) and m <= 2^30 it is below 2^-10, which `fedrec.federation.shop_side` keeps free.
    Note:
        With seats ``spread`` is 0. Without, it is below 1e-12 for smooth networks at usual parameters
        (tests/training/test_dp_sgd.py), and nothing bounds it at parameters that somebody chose for that: five times C
        was reached, with kinks (ReLU), inner steps, gradients of nothing but rounding, and norms at the end of
        float64's range (tests/training/test_seats.py has such networks).
    """
    unit = 2.0**-53
    pieces = (at_once or num_shoppers) * addends / LEAST_SHARE if addends > 1 else 0
    return 4 * unit * longest_sum + 2 * unit * num_shoppers * (num_shoppers + pieces) + spread * num_shoppers


class ClosedForm:
    """Norms and sums from one forward and one backward pass over a micro-batch."""

    def __init__(self, network: Network, batch: Batch) -> None:
        layers = layers_of(network)
        num_shoppers = num_shoppers_of(batch)
        self.parts: list[tuple[Layer, LayerGradients]] = []
        self.norms = torch.zeros(num_shoppers, dtype=torch.float64, device=network.device)
        if num_shoppers == 0:
            return
        for layer, calls in calls_of(network, batch, layers):
            assert layer.rule is not None
            self.parts.append((layer, layer.rule.gradients(layer.module, calls)))
        for _, part in self.parts:
            self.norms += part.squares
        self.norms.sqrt_()

    def add(self, weights: Tensor, totals: Totals) -> None:
        if not weights.any():
            return
        for layer, part in self.parts:
            part.add(weights, {local: totals[layer.full_name(local)] for local in layer.own})


def zero_totals(network: Network) -> tuple[Tensor, Totals]:
    """A flat float64 sum of zeros, (num_values,), and its views by parameter."""
    sizes = [values.numel() for values in network.parameters()]
    flat = torch.zeros(sum(sizes), dtype=torch.float64, device=network.device)
    parts = zip(network.named_parameters(), flat.split(sizes), strict=True)
    return flat, {name: part.view_as(values) for (name, values), part in parts}


def check_bound(bound: float) -> None:
    """Refuse a clip norm that is not finite, or so small that squared norms of its size are nothing to float64."""
    if not _LEAST_BOUND <= bound < math.inf:
        raise BadAssumption(f"clip norm = {bound}: give a finite number of at least {_LEAST_BOUND:g}")


def _longest(histories: sparse.csr_matrix) -> slice:
    """The row with most items."""
    row = int(np.diff(histories.indptr).argmax())
    return slice(row, row + 1)


class OpacusHooks:
    """Opacus' ``hooks``: every shopper's gradient as such, (num_shoppers, num_values) in memory."""

    def __init__(self, network: Network, batch: Batch) -> None:
        layers = _layers_for_opacus(network, is_ghost=False)
        num_shoppers = num_shoppers_of(batch)
        self.norms = torch.zeros(num_shoppers, dtype=torch.float64, device=network.device)
        self._written: dict[str, Tensor] = {}
        if num_shoppers == 0:  # Opacus fails on some empty batches
            return
        with _opacus_on(network, is_ghost=False):
            losses, edges = _losses(network, batch, layers)
            if losses.requires_grad:
                losses.sum().backward()
            for layer in layers:
                for local, values in layer.own.items():
                    gradient = getattr(values, "grad_sample", None)
                    if gradient is None and edges[id(values)]:
                        raise NoPrivateVariant(unseen(layer, local))
                    if gradient is None:
                        continue
                    if getattr(layer.module, "padding_idx", None) is not None:
                        gradient[:, layer.module.padding_idx] = 0  # torch gives it no gradient, Opacus does
                    self._written[layer.full_name(local)] = gradient
                    self.norms += torch.linalg.vector_norm(gradient.flatten(1), dim=1).double().square()
        self.norms.sqrt_()

    def add(self, weights: Tensor, totals: Totals) -> None:
        is_kept = weights != 0
        for name, gradient in self._written.items():
            kept = gradient if is_kept.all() else gradient[is_kept]
            totals[name] += torch.tensordot(weights[is_kept].to(gradient.dtype), kept, dims=1)


class OpacusGhost:
    """Opacus' ``ghost``: norms from layers' inputs and derivatives, sums from a second backward pass."""

    def __init__(self, network: Network, batch: Batch) -> None:
        self._network, self._batch = network, batch
        self._losses: Tensor | None = None
        layers = _layers_for_opacus(network, is_ghost=True)
        num_shoppers = num_shoppers_of(batch)
        self.norms = torch.zeros(num_shoppers, dtype=torch.float64, device=network.device)
        if num_shoppers == 0:
            return
        with _opacus_on(network, is_ghost=True) as hooks:
            losses, edges = _losses(network, batch, layers)
            if not losses.requires_grad:
                return
            losses.sum().backward(retain_graph=True)
            for layer in layers:
                for local, values in layer.own.items():
                    if hasattr(values, "_norm_sample"):
                        continue
                    if edges[id(values)]:
                        raise NoPrivateVariant(unseen(layer, local))
                    vars(values)["_norm_sample"] = torch.zeros_like(losses)  # the layer moves no loss
            self.norms = hooks.get_norm_sample().detach().double()
            hooks.disable_hooks()
        self._losses = losses

    def add(self, weights: Tensor, totals: Totals) -> None:
        if self._losses is None or not weights.any():
            return
        is_kept = weights != 0
        if not is_kept.all():  # a weight of 0 times a derivative that is not finite would be NaN
            kept = OpacusGhost(self._network, {name: values[is_kept] for name, values in self._batch.items()})
            kept.add(weights[is_kept], totals)
            return
        names, parameters = zip(*self._network.named_parameters(), strict=True)
        weighted = (weights.to(self._losses.dtype) * self._losses).sum()
        with _without_warnings():
            gradients = torch.autograd.grad(weighted, parameters, retain_graph=True, allow_unused=True)
        for name, gradient in zip(names, gradients, strict=True):
            if gradient is not None:
                totals[name] += gradient


def opacus(network: Network, batch: Batch) -> PerShopper:
    """Opacus: ghost where all layers have its norms, hooks otherwise."""
    try:
        return OpacusGhost(network, batch)
    except NoPrivateVariant:
        return OpacusHooks(network, batch)  # which refuses for itself


@contextmanager
def _opacus_on(network: Network, *, is_ghost: bool) -> Iterator[GradSampleHooks]:
    """Opacus' hooks on the network itself, which is left as it was."""
    from opacus.grad_sample import GradSampleHooks, GradSampleHooksFastGradientClipping

    modes = {module: module.training for module in network.modules()}
    gradients = {values: values.grad for values in network.parameters()}
    for values in network.parameters():
        values.grad = None
    hooks = (GradSampleHooksFastGradientClipping if is_ghost else GradSampleHooks)(network, loss_reduction="sum")
    try:
        network.train()  # Opacus' hooks do nothing otherwise
        with torch.enable_grad(), _without_warnings():
            yield hooks
    except NotImplementedError as error:
        raise NoPrivateVariant(f"Opacus: {error}") from error
    finally:
        hooks.cleanup()
        for module, mode in modes.items():
            module.training = mode
            for name in ("activations", "max_batch_len"):
                vars(module).pop(name, None)
        for values, gradient in gradients.items():
            values.grad = gradient


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Without torch's warning that a layer of shared numbers has no gradient to pass on."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Full backward hook is firing")
        yield


def _losses(network: Network, batch: Batch, layers: list[Layer]) -> tuple[Tensor, Counter[int]]:
    """Losses, and where their graph holds each parameter: once for each call of its layer, or never."""
    calls: Counter[int] = Counter()

    def count(module: nn.Module, *_: object) -> None:
        if torch.is_grad_enabled():
            calls.update(id(values) for values in module.parameters(recurse=False))

    handles = [layer.module.register_forward_hook(count) for layer in layers]
    try:
        losses = network(batch)
    finally:
        for handle in handles:
            handle.remove()
    check_losses(losses, num_shoppers_of(batch))
    edges = graph_edges(losses)
    refuse_unseen(layers, edges, calls)
    return losses, edges


def _layers_for_opacus(network: Network, is_ghost: bool) -> list[Layer]:
    """The layers, if Opacus does them right."""
    from opacus.grad_sample import GradSampleHooks, GradSampleHooksFastGradientClipping

    samplers: dict[Any, Any] = GradSampleHooks.GRAD_SAMPLERS
    if is_ghost:
        samplers = GradSampleHooksFastGradientClipping.NORM_SAMPLERS
    layers = layers_of(network, others=samplers.keys() - {nn.EmbeddingBag})
    for layer in layers:
        if isinstance(layer.module, TiedAutoencoder):
            raise NoPrivateVariant(f"{layer} is invisible to Opacus, whose hooks sit on forward: use closed-form")
        if isinstance(layer.module, SparseLinear):
            raise NoPrivateVariant(f"{layer} is unknown to Opacus: use closed-form, or nn.Linear in its place")
        if isinstance(layer.module, nn.LayerNorm) and layer.module.bias is None:
            raise NoPrivateVariant(f"{layer} has no bias, where Opacus fails: use closed-form")
        if type(layer.module) not in samplers:
            raise NoPrivateVariant(f"{layer} has no norms in Opacus' ghost mode: use opacus-hooks")
        if is_ghost and getattr(layer.module, "padding_idx", None) is not None:
            raise NoPrivateVariant(f"{layer} has padding, which Opacus' ghost mode counts: use opacus-hooks")
    return layers


ENGINES: dict[str, Engine] = {
    "closed-form": ClosedForm,
    "opacus": opacus,
    "opacus-ghost": OpacusGhost,
    "opacus-hooks": OpacusHooks,
}
"""Ways to the same norms and sums."""
