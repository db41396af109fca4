"""Norms and weighted sums of per-shopper gradients, layer by layer, without one gradient per shopper.

A layer's part of a shopper's gradient follows from what went into the layer (``inputs``) and the derivative of her loss
by what came out (``gradient``). A rule turns the two, for some shoppers at once, into the squared norm of every
shopper's part and into sums of the parts with any weights. `RULES` has the layers that can be used; another layer gets
an entry of its own.

Where a squared norm is a sum of products that may cancel, a bound on its rounding error is added: no norm comes out
smaller than it is, so that nobody is clipped too little. And a gradient that is nearly all cancelled counts as
`LEAST_SHARE` of what its addends would be without: in a sum over shoppers rounding follows their lengths, not that of
what they leave. Such a batch is summed apart before it joins the sum of all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from fedrec.errors import NoPrivateVariant


class TiedAutoencoder(nn.Module):
    """A linear layer and its transpose: encode h = x W, decode s = z W^T + b, with the same W.

    Attributes:
        weight: W, (num_items, size).
        bias: b, (num_items,).
    """

    def __init__(self, num_items: int, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(nn.init.xavier_normal_(torch.empty(num_items, size)))
        self.bias = nn.Parameter(torch.zeros(num_items))

    def encode(self, rows: Tensor) -> Tensor:
        """(num_rows, size) from rows (num_rows, num_items)."""
        return rows @ self.weight

    def decode(self, codes: Tensor) -> Tensor:
        """(num_rows, num_items) from codes (num_rows, size)."""
        return functional.linear(codes, self.weight, self.bias)

    def forward(self, rows: Tensor) -> Tensor:
        """Decode what was encoded."""
        return self.decode(self.encode(rows))


class SparseLinear(nn.Linear):
    """`nn.Linear` for inputs that are mostly zeros: the same parameters and outputs, faster on a CPU.

    In memory the weights of one item lie side by side, as a transposed matrix.
    """

    def forward(self, rows: Tensor) -> Tensor:
        """(num_rows, size_out) from (num_rows, size_in)."""
        if rows.is_cuda or rows.requires_grad or rows.dim() != 2:
            return super().forward(rows)
        places, columns = rows.nonzero().unbind(1)
        sums = _sums_of_rows(self.weight.t().contiguous(), columns, rows[places, columns], places, len(rows))
        return sums if self.bias is None else sums + self.bias


@dataclass(frozen=True)
class Call:
    """One use of a layer, by shopper: the first axis of both tensors.

    Attributes:
        inputs: what went in: floating (num_shoppers, ..., size_in), or whole numbers (num_shoppers, ...).
        gradient: (num_shoppers, ..., size_out): derivative of each shopper's loss by what came out.
    """

    inputs: Tensor
    gradient: Tensor


Calls = Mapping[str, Sequence[Call]]
"""A layer's calls by the name of the method; each of the rule's methods is there."""


class LayerGradients(Protocol):
    """One layer's part of some shoppers' gradients.

    Attributes:
        squares: float64, (num_shoppers,): squared L2 norm of each shopper's part.
    """

    squares: Tensor

    def add(self, weights: Tensor, totals: Mapping[str, Tensor]) -> None:
        """Add the sum over shoppers of weight times gradient to ``totals``, in place.

        Args:
            weights: float64, (num_shoppers,); a weight of 0 leaves a shopper out even if her gradient is not finite.
            totals: by the name of the layer's parameter, in its shape.
        """


@dataclass(frozen=True)
class Rule:
    """How one class of layers is done.

    Attributes:
        parameters: names of all parameters a layer of the class may have.
        gradients: norms and sums from the layer and its calls.
        methods: what reads the parameters, each from one tensor to one tensor.
        refusal: why a layer with these settings cannot be used; empty if it can.
    """

    parameters: frozenset[str]
    gradients: Callable[[nn.Module, Calls], LayerGradients]
    methods: tuple[str, ...] = ("forward",)
    refusal: Callable[[nn.Module], str] = lambda layer: ""


class OuterProducts:
    """Each shopper's gradient is one outer product, g a^T, with bias gradient g."""

    def __init__(self, call: Call, has_bias: bool) -> None:
        self._call = call
        self.squares = (_squares(call.inputs) + has_bias) * _squares(call.gradient)

    def add(self, weights: Tensor, totals: Mapping[str, Tensor]) -> None:
        self.add_weighted(*self.weighted(weights), totals)

    def weighted(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Weight times gradient, and inputs, of the shoppers whose weight is not 0: what `add_weighted` takes."""
        weights, inputs, gradient = _kept(weights, self._call.inputs, self._call.gradient)
        return gradient * weights.to(gradient.dtype)[:, None], inputs

    def add_weighted(self, weighted: Tensor, inputs: Tensor, totals: Mapping[str, Tensor]) -> None:
        """Add the sum of outer products, of any batches of the layer."""
        self._add_product(totals["weight"], weighted, inputs)
        if "bias" in totals:
            totals["bias"] += weighted.sum(0)

    def _add_product(self, total: Tensor, weighted: Tensor, inputs: Tensor) -> None:
        _add_product(total, weighted, inputs)


class SparseOuterProducts(OuterProducts):
    """The same where inputs are mostly zeros."""

    def _add_product(self, total: Tensor, weighted: Tensor, inputs: Tensor) -> None:
        rows, columns = inputs.nonzero().unbind(1)
        order = columns.argsort(stable=True)
        rows, columns = rows[order], columns[order]
        values = inputs[rows, columns]
        for first in range(0, inputs.shape[1], _INPUTS_AT_ONCE):
            part = total.T[first : first + _INPUTS_AT_ONCE]
            start, end = torch.searchsorted(columns, torch.tensor([first, first + len(part)])).tolist()
            part += _sums_of_rows(weighted, rows[start:end], values[start:end], columns[start:end] - first, len(part))


class SumsOfOuterProducts:
    """Each shopper's gradient is a sum of few outer products, too large to write out: norms from inner products."""

    def __init__(self, call: Call, has_bias: bool) -> None:
        inputs, gradient = call.inputs, call.gradient  # a_i (num_shoppers, length, size_in), g_i (..., size_out)
        self._call = call
        # |sum_i g_i a_i^T|^2 = sum_ij (a_i.a_j)(g_i.g_j), each (num_shoppers, length, length); a bias is an input of 1
        by_inputs, by_gradient = inputs @ inputs.mT + has_bias, gradient @ gradient.mT
        lengths = (inputs.double().square().sum(2) + has_bias).sqrt() * gradient.double().norm(dim=2)
        products = (by_inputs.double() * by_gradient.double()).sum((1, 2))
        terms = inputs.shape[2] + has_bias + gradient.shape[2] + inputs.shape[1] ** 2
        self.squares = _upper(products, lengths.sum(1), terms, inputs.dtype)

    def add(self, weights: Tensor, totals: Mapping[str, Tensor]) -> None:
        weights, inputs, gradient = _kept(weights, self._call.inputs, self._call.gradient)
        weighted = (gradient * weights.to(gradient.dtype)[:, None, None]).flatten(0, 1)
        totals["weight"] += weighted.T @ inputs.flatten(0, 1)
        if "bias" in totals:
            totals["bias"] += weighted.sum(0)


class WrittenOut:
    """Every shopper's gradient as such, where that is small."""

    def __init__(self, gradients: Mapping[str, Tensor]) -> None:
        """Args:
        gradients: by the parameter's name, (num_shoppers, *its shape).
        """
        self._gradients = gradients
        self.squares = torch.stack([_squares(gradient) for gradient in gradients.values()]).sum(0)

    def add(self, weights: Tensor, totals: Mapping[str, Tensor]) -> None:
        for name, gradient in self._gradients.items():
            kept_weights, kept = _kept(weights, gradient)
            totals[name] += (kept_weights.to(kept.dtype) @ kept.flatten(1)).view_as(totals[name])


class Lookups:
    """Rows of a table that shoppers looked up: a shopper who looks one up twice has the sum of both as its gradient."""

    def __init__(self, ids: Tensor, gradient: Tensor, num_rows: int) -> None:
        """Args:
        ids: int, (num_shoppers, length).
        gradient: (num_shoppers, length, size).
        num_rows: of the table.
        """
        num_shoppers, length = ids.shape
        squares = torch.linalg.vector_norm(gradient, dim=2).double().square()  # (num_shoppers, length)
        self._shoppers = torch.arange(num_shoppers, device=ids.device).repeat_interleave(length)
        self._ids, self._values = ids.reshape(-1), gradient.reshape(num_shoppers * length, gradient.shape[2])
        # Places without a gradient get keys of their own: padding never collides.
        own_keys = num_rows + torch.arange(length, device=ids.device)
        keys = torch.where(squares == 0, own_keys, ids)
        in_order = np.sort(keys.cpu().numpy(), axis=1)  # 30 times as fast as torch's
        is_repeated = torch.from_numpy((in_order[:, 1:] == in_order[:, :-1]).any(1)).to(ids.device)
        self.squares = squares.sum(1)
        if is_repeated.any():
            self.squares = torch.where(is_repeated, self._merge(keys).sum(1), self.squares)

    def _merge(self, keys: Tensor) -> Tensor:
        """Move all that a shopper has at one key to its first place; the squared norms then, (num_shoppers, length).

        No shape follows from who has how many, and rows without repeats keep the norms they had: whether another
        shopper looks something up twice is in nobody else's last bit.
        """
        num_shoppers, length = keys.shape
        keys, order = keys.sort(dim=1, stable=True)
        places = torch.arange(length, device=keys.device).expand_as(keys)
        is_first = torch.ones_like(keys, dtype=torch.bool)
        is_first[:, 1:] = keys[:, 1:] != keys[:, :-1]
        firsts = order.gather(1, torch.where(is_first, places, 0).cummax(1).values)
        starts = length * torch.arange(num_shoppers, device=keys.device)[:, None]
        merged = torch.zeros_like(self._values)
        merged.index_add_(0, (firsts + starts).reshape(-1), self._values[(order + starts).reshape(-1)])
        self._values = merged
        by_place = merged.view(num_shoppers, length, merged.shape[1])
        return torch.linalg.vector_norm(by_place, dim=2).double().square()

    def add(self, weights: Tensor, totals: Mapping[str, Tensor]) -> None:
        weights, ids, values = _kept(weights[self._shoppers], self._ids, self._values)
        total = totals["weight"]
        weighted = values * weights.to(values.dtype)[:, None]
        total.index_add_(0, ids, weighted.to(total.dtype))


class TiedProducts:
    """Gradients x p^T + g z^T of a `TiedAutoencoder`'s weight, and g of its bias."""

    def __init__(self, encode: Call, decode: Call) -> None:
        self._encode, self._decode = encode, decode
        rows, p, codes, g = (
            tensor.double() for tensor in (encode.inputs, encode.gradient, decode.inputs, decode.gradient)
        )
        # |x p^T + g z^T|^2 = |x|^2 |p|^2 + |g|^2 |z|^2 + 2 (x.g)(p.z)
        first, second = _squares(rows) * _squares(p), _squares(codes) * _squares(g)
        cross = 2 * (rows * g).sum(1) * (p * codes).sum(1)
        reach, num_terms = first.sqrt() + second.sqrt(), rows.shape[1] + p.shape[1]
        self.squares = _upper(first + second + cross, reach, num_terms, torch.float64) + _squares(g)

    def add(self, weights: Tensor, totals: Mapping[str, Tensor]) -> None:
        kept, rows, p, codes, g = _kept(
            weights, self._encode.inputs, self._encode.gradient, self._decode.inputs, self._decode.gradient
        )
        factors = kept.to(g.dtype)[:, None]
        weighted = g * factors
        totals["weight"] += (rows.T @ (p * factors)).addmm_(weighted.T, codes)
        totals["bias"] += weighted.sum(0)


def linear(layer: nn.Module, calls: Calls) -> LayerGradients:
    """nn.Linear on (num_shoppers, ..., size_in)."""
    call = _joined(calls["forward"])
    has_bias = layer.bias is not None
    if call.inputs.shape[1] == 1:
        return OuterProducts(Call(call.inputs[:, 0], call.gradient[:, 0]), has_bias)
    length, size_in, size_out = call.inputs.shape[1], call.inputs.shape[2], call.gradient.shape[2]
    if length * (size_in + size_out) < size_in * size_out:
        return SumsOfOuterProducts(call, has_bias)
    written = {"weight": call.gradient.mT @ call.inputs}  # (num_shoppers, size_out, size_in)
    if has_bias:
        written["bias"] = call.gradient.sum(1)
    return WrittenOut(written)


def sparse_linear(layer: nn.Module, calls: Calls) -> LayerGradients:
    """`SparseLinear`; what its own product does not do is done as for nn.Linear."""
    call, *others = calls["forward"]
    if others or call.inputs.dim() != 2 or call.inputs.is_cuda:
        return linear(layer, calls)
    return SparseOuterProducts(call, layer.bias is not None)


def embedding(layer: nn.Module, calls: Calls) -> LayerGradients:
    """nn.Embedding on ids (num_shoppers, ...); the row at padding_idx has no gradient, as in torch."""
    assert isinstance(layer, nn.Embedding)
    ids = torch.cat([call.inputs.reshape(len(call.inputs), -1) for call in calls["forward"]], dim=1)
    gradient = torch.cat(
        [call.gradient.reshape(len(call.inputs), -1, layer.embedding_dim) for call in calls["forward"]], dim=1
    )
    if layer.padding_idx is not None:
        gradient = gradient.masked_fill((ids == layer.padding_idx)[:, :, None], 0)
    return Lookups(ids, gradient, layer.num_embeddings)


def layer_norm(layer: nn.Module, calls: Calls) -> LayerGradients:
    """nn.LayerNorm with weight, with or without bias."""
    assert isinstance(layer, nn.LayerNorm)
    written: dict[str, Tensor] = {}
    for call in calls["forward"]:
        normalised = functional.layer_norm(call.inputs, layer.normalized_shape, eps=layer.eps)
        for name, gradient in (("weight", normalised * call.gradient), ("bias", call.gradient)):
            if getattr(layer, name) is not None:
                by_place = gradient.reshape(len(gradient), -1, *layer.normalized_shape)
                written[name] = written[name] + by_place.sum(1) if name in written else by_place.sum(1)
    return WrittenOut(written)


def tied(layer: nn.Module, calls: Calls) -> LayerGradients:
    """`TiedAutoencoder`, each half used once at most, on (num_shoppers, size)."""
    assert isinstance(layer, TiedAutoencoder)
    some = calls["encode"] or calls["decode"]
    num_items, size = layer.weight.shape

    def only(method: str, size_in: int, size_out: int) -> Call:
        if not calls[method]:
            like = some[0].gradient
            return Call(like.new_zeros(len(like), size_in), like.new_zeros(len(like), size_out))
        call = calls[method][0]
        if len(calls[method]) > 1 or call.inputs.dim() != 2:
            raise NoPrivateVariant(
                f"TiedAutoencoder.{method} takes one vector a shopper, once: (num_shoppers, {size_in})"
            )
        return call

    return TiedProducts(only("encode", num_items, size), only("decode", size, num_items))


def _refuse_embedding(layer: nn.Module) -> str:
    if layer.max_norm is not None:
        return "max_norm changes rows when they are looked up"
    return "scale_grad_by_freq divides by counts over all shoppers" if layer.scale_grad_by_freq else ""


LEAST_SHARE = 2.0**-5
"""Of the lengths of a gradient's addends, added up, that its norm counts as at least; see above."""

_INPUTS_AT_ONCE = 512  # whose part of a sum fits into the cache
_AFFINE = frozenset({"weight", "bias"})

RULES: dict[type[nn.Module], Rule] = {
    nn.Linear: Rule(_AFFINE, linear),
    SparseLinear: Rule(_AFFINE, sparse_linear),
    nn.Embedding: Rule(frozenset({"weight"}), embedding, refusal=_refuse_embedding),
    nn.LayerNorm: Rule(_AFFINE, layer_norm),
    TiedAutoencoder: Rule(_AFFINE, tied, methods=("encode", "decode")),
}
"""By a layer's exact class: a subclass may compute something else."""


def _sums_of_rows(table: Tensor, rows: Tensor, values: Tensor, groups: Tensor, num_groups: int) -> Tensor:
    """(num_groups, size): in each group the sum of some rows of ``table`` (num_rows, size), in order.

    Args:
        rows, values, groups: (num_places,): which row, times what, to which group; groups ascending.
    """
    starts = torch.searchsorted(groups, torch.arange(num_groups))
    return functional.embedding_bag(rows, table, starts, mode="sum", per_sample_weights=values)


def _joined(calls: Sequence[Call]) -> Call:
    """One call of (num_shoppers, length, size) tensors that stands for all."""
    shaped = [
        Call(*(tensor.reshape(len(tensor), -1, tensor.shape[-1]) for tensor in (call.inputs, call.gradient)))
        for call in calls
    ]
    if len(shaped) == 1:
        return shaped[0]
    return Call(torch.cat([call.inputs for call in shaped], 1), torch.cat([call.gradient for call in shaped], 1))


def _squares(values: Tensor) -> Tensor:
    """float64, (num_shoppers,): squared L2 norm of each one's values."""
    return torch.linalg.vector_norm(values.flatten(1), dim=1).double().square()


def _upper(squares: Tensor, reach: Tensor, num_terms: int, dtype: torch.dtype) -> Tensor:
    """Squared norms plus a bound on their rounding error, at least `LEAST_SHARE` of reach, squared.

    Args:
        squares: float64, (num_shoppers,): sums of products that may cancel.
        reach: float64, (num_shoppers,): sum of the norms of the addends of each gradient.
        num_terms: length of the longest chain of additions.
        dtype: in which the products were computed.
    """
    error = num_terms * torch.finfo(dtype).eps * reach.square()
    return torch.maximum(squares, (LEAST_SHARE * reach).square()) + error


def _kept(weights: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
    """The rows whose weight is not 0: zero times infinity would be NaN."""
    is_kept = weights != 0
    if is_kept.all():
        return (weights, *tensors)
    return (weights[is_kept], *(tensor[is_kept] for tensor in tensors))


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total += left^T right."""
    if total.dtype == left.dtype:
        total.addmm_(left.T, right)
    else:
        total += left.T @ right
