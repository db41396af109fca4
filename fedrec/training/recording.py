"""What a network's losses depend on its parameters through: its layers' calls, recorded, and nothing else.

A per-shopper gradient is complete only if every way from a parameter to a loss is known. So a layer's parameters are
constants inside its own calls, whose inputs and outputs are recorded, and a parameter that autograd's graph still
reaches was used elsewhere: it is refused, at every step.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fedrec.errors import NoPrivateVariant
from fedrec.training.layer_rules import RULES, Call, Rule
from fedrec.training.network import Batch, Network

_MIXES = (nn.modules.batchnorm._NormBase, nn.LocalResponseNorm)
_DRAWS = (nn.modules.dropout._DropoutNd, nn.RReLU)


@dataclass(frozen=True)
class Layer:
    """A module with parameters of its own, and how it is done."""

    name: str
    module: nn.Module
    rule: Rule | None

    @property
    def own(self) -> dict[str, nn.Parameter]:
        """Its own parameters, by their local name."""
        return dict(self.module.named_parameters(recurse=False))

    @property
    def methods(self) -> tuple[str, ...]:
        """What is recorded."""
        return self.rule.methods if self.rule else ()

    def __str__(self) -> str:
        return f"layer {self.name or 'the network itself'} ({type(self.module).__name__})"

    def full_name(self, local: str) -> str:
        """A parameter's name in the network."""
        return f"{self.name}.{local}" if self.name else local


def layers_of(network: nn.Module, others: Iterable[type[nn.Module]] = ()) -> list[Layer]:
    """All modules that hold parameters, if each can be used.

    Args:
        network: any module.
        others: classes that do without a rule.
    Raises:
        NoPrivateVariant: a layer that mixes shoppers or draws in table order, that has no rule or not its usual form,
            a parameter of two layers, or one that is frozen.
    """
    layers: list[Layer] = []
    owner: dict[int, Layer] = {}
    others = tuple(others)
    for name, module in network.named_modules():
        layer = Layer(name, module, RULES.get(type(module)))
        if isinstance(module, _MIXES):
            raise NoPrivateVariant(f"{layer} mixes shoppers: use nn.LayerNorm")
        if isinstance(module, _DRAWS):
            raise NoPrivateVariant(f"{layer} draws in table order: draw a shopper's dropout in Network.batch")
        if not layer.own:
            continue
        _refuse_unknown(layer, others)
        for local, values in layer.own.items():
            if id(values) in owner:
                raise NoPrivateVariant(
                    f"{layer} shares its {local} with {owner[id(values)]}: gradients of both would have to be added "
                    "before clipping; use TiedAutoencoder, or one module called twice"
                )
            if not values.requires_grad:
                raise NoPrivateVariant(f"{local} of {layer} is frozen: make it a buffer")
            owner[id(values)] = layer
        layers.append(layer)
    return layers


def _refuse_unknown(layer: Layer, others: tuple[type[nn.Module], ...]) -> None:
    rule = layer.rule
    if rule is None and type(layer.module) in others:
        return
    if rule is None:
        names = ", ".join(sorted(kind.__name__ for kind in RULES))
        raise NoPrivateVariant(f"{layer} has no rule for per-shopper gradients: possible are {names} (exact classes)")
    reason = rule.refusal(layer.module)
    unusual = layer.own.keys() - rule.parameters
    if not reason and unusual:
        reason = f"it has parameters of its own: {', '.join(sorted(unusual))}"
    if not reason and any(method in vars(layer.module) for method in rule.methods):
        reason = "its methods were replaced"
    if reason:
        raise NoPrivateVariant(f"{layer} cannot be used: {reason}")


@dataclass(frozen=True)
class _Recorded:
    """One call of a layer's method: what went in and came out, and autograd's counts of changes in place."""

    layer: Layer
    method: str
    inputs: Tensor
    output: Tensor
    versions: tuple[int, int]


def calls_of(network: Network, batch: Batch, layers: list[Layer]) -> Iterator[tuple[Layer, dict[str, list[Call]]]]:
    """Layers that move a loss, with their calls' inputs and derivatives."""
    num_shoppers = num_shoppers_of(batch)
    with torch.enable_grad():
        losses, records = _forward(network, batch, layers)
        outputs = [record.output for record in records]
        if not losses.requires_grad:
            return
        gradients = torch.autograd.grad(losses.sum(), outputs, allow_unused=True)
    calls: dict[int, dict[str, list[Call]]] = {}
    for record, gradient in zip(records, gradients, strict=True):
        if gradient is None:
            continue
        if len(record.inputs) != num_shoppers or len(gradient) != num_shoppers:
            raise NoPrivateVariant(
                f"{record.layer} takes {tuple(record.inputs.shape)} for {num_shoppers} shoppers: the first axis must "
                "be the shopper, whatever she shares with others repeated for each"
            )
        found = calls.setdefault(id(record.layer), {method: [] for method in record.layer.methods})
        found[record.method].append(Call(record.inputs, gradient))
    for layer in layers:
        if id(layer) in calls:
            yield layer, calls[id(layer)]


def _forward(network: Network, batch: Batch, layers: list[Layer]) -> tuple[Tensor, list[_Recorded]]:
    """Losses, in a graph that ends at the layers' outputs: parameters are constants inside their own layers."""
    records: list[_Recorded] = []
    try:
        for layer in layers:
            for method in layer.methods:
                setattr(layer.module, method, _tapped(layer, method, records))
        losses = network(batch)
    finally:
        for layer in layers:
            for method in layer.methods:
                vars(layer.module).pop(method, None)
    check_losses(losses, num_shoppers_of(batch))
    refuse_unseen(layers, graph_edges(losses), Counter())
    for record in records:
        if record.versions != (record.inputs._version, record.output._version):
            raise NoPrivateVariant(f"{record.layer}: what went in or came out was changed in place afterwards")
    return losses, records


def _tapped(layer: Layer, method: str, records: list[_Recorded]) -> Callable[..., Tensor]:
    """The method, recorded; inside, the layer's parameters don't require gradients."""
    original = getattr(layer.module, method)
    own = list(layer.own.values())

    def tapped(*args: Tensor, **kwargs: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            return original(*args, **kwargs)
        (inputs,) = (*args, *kwargs.values())
        for values in own:
            values.requires_grad_(False)
        try:
            output = original(inputs)
        finally:
            for values in own:
                values.requires_grad_(True)
        if not output.requires_grad:
            output.requires_grad_(True)
        inputs = inputs.detach()
        records.append(_Recorded(layer, method, inputs, output, (inputs._version, output._version)))
        return output

    return tapped


def graph_edges(losses: Tensor) -> Counter[int]:
    """In how many places autograd's graph of the losses holds each tensor that it ends at, by id."""
    edges: Counter[int] = Counter()
    seen = set()
    stack = [losses.grad_fn]
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        for follower, _ in node.next_functions:
            variable = getattr(follower, "variable", None)
            if variable is not None:
                edges[id(variable)] += 1
            else:
                stack.append(follower)
    return edges


def refuse_unseen(layers: list[Layer], edges: Counter[int], expected: Counter[int]) -> None:
    """Refuse a parameter that reaches a loss otherwise than ``expected``, by id: its gradient would lack some."""
    for layer in layers:
        for local, values in layer.own.items():
            if edges[id(values)] not in (0, expected[id(values)]):
                raise NoPrivateVariant(unseen(layer, local))


def unseen(layer: Layer, local: str) -> str:
    """What is wrong with a use of a parameter that is no call of its layer."""
    return (
        f"{local} of {layer} is used outside its layer, where its gradient cannot be seen: call the layer itself, "
        "always for a loss; for a tied decoder use TiedAutoencoder"
    )


def num_shoppers_of(batch: Batch) -> int:
    """The batch's first axis."""
    lengths = {len(values) for values in batch.values()}
    if len(lengths) != 1:
        raise ValueError(f"a batch with first axes of {sorted(lengths)}: all must be the shopper")
    return lengths.pop()


def check_losses(losses: Tensor, num_shoppers: int) -> None:
    """One loss a shopper; of shape (B, 1) they would broadcast into B^2 later, and undo the clipping."""
    if losses.shape != (num_shoppers,):
        raise NoPrivateVariant(f"losses of shape {tuple(losses.shape)}: ({num_shoppers},) expected, one a shopper")
