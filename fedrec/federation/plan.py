"""What the coordinator asks of every shop in one round, and the bytes that say so.

A plan is a canonical JSON header plus the raw input arrays. The header names the sha256 of each array, so the
digest of the header binds the whole plan: two shops with the same digest were asked the same thing.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from fedrec.errors import BadMessage, ConfigError, PrivacyError
from fedrec.federation.terms import Terms
from fedrec.models.recommender import Layout, PublicInputs, Recommender, RoundKind, RoundSpec

FORMAT_VERSION = 5
"""Version of plans and releases; a shop and a coordinator of different versions refuse each other."""

MOST_ATTEMPTS = 1000
"""A round that failed so often for want of shops is not drawn anew."""

WIRE_DTYPES = frozenset({"float64", "float32", "int64", "int32", "uint8", "bool"})
"""Types that an input array may have."""


@dataclass(frozen=True)
class RoundPlan:
    """One round as every shop of the roster must understand it.

    Attributes:
        index: 0, 1, ... within the run.
        spec: what is summed, its layout and the shared arrays a shop needs for it.
        model_name: registered name of the model.
        model_settings: the model's own fields, as JSON values.
        items_digest: sha256 of the federation's item keys in order, hexadecimal.
        terms: who takes part, and what is promised.
        setup: digest of the set-up of keys whose masks hide the uploads, hexadecimal; empty without secure aggregation.
        attempt: how often the round failed for want of shops before, where each attempt asks a draw of its own; else 0,
            so that a round that asks all shops again is the same plan, answered by the same bytes at no further charge.
    """

    index: int
    spec: RoundSpec
    model_name: str
    model_settings: Mapping[str, Any]
    items_digest: str
    terms: Terms
    setup: str = ""
    attempt: int = 0

    def __post_init__(self) -> None:
        if type(self.index) is not int or not self.index >= 0:
            raise ConfigError(f"round index {self.index}: must be a whole number, 0 or more")
        if type(self.attempt) is not int or not 0 <= self.attempt <= MOST_ATTEMPTS:
            raise ConfigError(f"attempt {self.attempt}: must be a whole number from 0 to {MOST_ATTEMPTS}")
        if self.attempt and not self.terms.draws_shops(self.spec.kind):
            raise ConfigError(
                f"attempt {self.attempt} of round {self.index}, which asks all shops: it stays the same plan"
            )
        if (self.terms.secure is not None) != (len(self.setup) == 64):
            raise ConfigError("a plan names a set-up of keys if, and only if, its terms ask for secure aggregation")
        rate = self.spec.sampling_rate
        if not (type(rate) is float and 0 < rate <= 1) or (rate < 1 and self.spec.kind is RoundKind.STATISTICS):
            raise ConfigError(
                f"sampling rate {rate} of a {self.spec.kind} round: above 0 and at most 1; 1 for statistics"
            )
        for name, array in self.spec.inputs.items():
            if array.dtype.name not in WIRE_DTYPES:
                allowed = ", ".join(sorted(WIRE_DTYPES))
                raise ConfigError(f"input array {name!r} has type {array.dtype}: allowed are {allowed}")
            if not array.dtype.isnative:  # the wire has no byte order, so other numbers would arrive
                raise ConfigError(f"input array {name!r} has a foreign byte order: give it in this machine's own")

    @cached_property
    def header(self) -> bytes:
        """Canonical JSON of everything but the input arrays' values, which it names by sha256."""
        return canonical_json(
            {
                **({"attempt": self.attempt} if self.attempt else {}),
                "format": FORMAT_VERSION,
                "round": self.index,
                "kind": str(self.spec.kind),
                "name": self.spec.name,
                "layout": self.spec.layout.shapes,
                "sampling_rate": self.spec.sampling_rate,
                "inputs": [
                    [name, array.dtype.name, array.shape, _array_digest(array)]
                    for name, array in self.spec.inputs.items()
                ],
                "model": self.model_name,
                "settings": self.model_settings,
                "items": self.items_digest,
                "terms": self.terms.to_json(),
                "setup": self.setup,
            }
        )

    @cached_property
    def digest(self) -> bytes:
        """sha256 of the header, 32 bytes: binds the whole plan."""
        return hashlib.sha256(self.header).digest()

    @cached_property
    def layout_digest(self) -> bytes:
        """sha256 of the layout, 32 bytes."""
        return bytes.fromhex(self.spec.layout.digest())

    @cached_property
    def num_values(self) -> int:
        """Length of the vector that each shop sends."""
        return self.spec.layout.size

    @cached_property
    def agreement(self) -> bytes:
        """What a shop must have agreed to: see `agreement`."""
        return agreement(self.model_name, self.model_settings, self.items_digest, self.terms)

    @cached_property
    def size_bytes(self) -> int:
        """Header and input arrays as they travel to one shop."""
        return len(self.header) + sum(array.nbytes for array in self.spec.inputs.values())


def read_plan(header: bytes, arrays: Mapping[str, np.ndarray]) -> RoundPlan:
    """The plan that a header and its input arrays describe.

    Args:
        header: canonical JSON as `RoundPlan.header` writes it.
        arrays: input arrays by name, with the types and shapes of the header.
    Raises:
        BadMessage: another version, unknown or missing fields, or arrays that are not the ones the header
            names.
    """
    try:
        fields = json.loads(header)
        if fields["format"] != FORMAT_VERSION:
            raise BadMessage(f"plan of format {fields['format']!r}: this shop reads format {FORMAT_VERSION}")
        layout = Layout(tuple((name, tuple(shape)) for name, shape in fields["layout"]))
        names = [name for name, _, _, _ in fields["inputs"]]
        if sorted(names) != sorted(arrays):
            raise BadMessage(f"plan names the input arrays {names}, the message holds {list(arrays)}")
        plan = RoundPlan(
            index=fields["round"],
            spec=RoundSpec(
                kind=RoundKind(fields["kind"]),
                name=fields["name"],
                layout=layout,
                inputs={name: arrays[name] for name in names},
                sampling_rate=fields["sampling_rate"],
            ),
            model_name=fields["model"],
            model_settings=fields["settings"],
            items_digest=fields["items"],
            terms=Terms.from_json(fields["terms"]),
            setup=fields["setup"],
            attempt=fields.get("attempt", 0),
        )
        rewritten = plan.header
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, ConfigError, PrivacyError) as error:
        raise BadMessage(f"bytes that are not a plan: {type(error).__name__}") from error
    if rewritten != header:
        raise BadMessage("plan header is not canonical, has unknown fields, or its input arrays were changed")
    return plan


def model_settings(model: Recommender) -> dict[str, Any]:
    """A model's own fields as JSON values; equal settings give equal JSON.

    Raises:
        ConfigError: the model is not a dataclass, or a field is not a JSON value.
    """
    if not dataclasses.is_dataclass(model) or isinstance(model, type):
        raise ConfigError(f"model {model.name!r}: a model must be a frozen dataclass of its settings")
    settings = dataclasses.asdict(model)
    try:
        return dict(json.loads(canonical_json(settings)))
    except (TypeError, ValueError) as error:
        raise ConfigError(f"model {model.name!r}: settings must be plain JSON values: {error}") from error


def agreement(model_name: str, settings: Mapping[str, Any], digest: str, terms: Terms) -> bytes:
    """Canonical JSON of model, settings, item space and terms.

    Equal on both sides, or the shop does not answer: a coordinator can ask for nothing that a shop did not agree to.
    """
    return canonical_json([model_name, settings, digest, terms.to_json()])


def items_digest(public: PublicInputs) -> str:
    """sha256 over the item keys in order, hexadecimal."""
    digest = hashlib.sha256()
    for key in public.items.tolist():
        encoded = str(key).encode()
        digest.update(len(encoded).to_bytes(4, "little") + encoded)
    return digest.hexdigest()


def canonical_json(value: object) -> bytes:
    """The one way to write a JSON value: sorted keys, no spaces, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def _array_digest(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).view(np.uint8).data if array.size else b"").hexdigest()
