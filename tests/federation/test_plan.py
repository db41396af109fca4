import dataclasses
import json

import numpy as np
import pytest

from fedrec.errors import BadMessage, ConfigError
from fedrec.federation.plan import RoundPlan, items_digest, model_settings, read_plan
from fedrec.federation.terms import Protection, Terms
from fedrec.models.popularity import Popularity
from fedrec.models.recommender import Layout, PublicInputs, RoundKind, RoundSpec

TERMS = ("roster", "min_shops", "run_id", "clip_norm")


def make_plan(**changes):
    spec = RoundSpec(
        RoundKind.STATISTICS,
        "pairs",
        Layout((("a", (2, 3)), ("b", (4,)))),
        {"positions": np.array([3, 1, 2]), "weights": np.array([[0.5, 1.5]], dtype=np.float32)},
    )
    terms = {"roster": ("x", "y", "z"), "min_shops": 2, "run_id": "r1"}
    terms |= {name: changes.pop(name) for name in list(changes) if name in TERMS}
    fields = {
        "index": 3,
        "spec": spec,
        "model_name": "m",
        "model_settings": {"l2": 10.0},
        "items_digest": "ab",
        "terms": Terms(**terms),
    }
    return RoundPlan(**(fields | changes))


def changed_spec(**changes):
    return dataclasses.replace(make_plan().spec, **changes)


def test_a_plan_survives_the_way_to_the_shop():
    plan = make_plan(clip_norm=1.5)
    read = read_plan(plan.header, plan.spec.inputs)
    assert read.digest == plan.digest
    assert read.terms.roster == ("x", "y", "z")
    assert read.terms.clip_norm == 1.5
    assert read.spec.layout == plan.spec.layout
    np.testing.assert_array_equal(read.spec.inputs["positions"], [3, 1, 2])


@pytest.mark.parametrize(
    "change",
    [
        {"run_id": "r2"},
        {"index": 4},
        {"model_name": "n"},
        {"model_settings": {"l2": 11.0}},
        {"items_digest": "cd"},
        {"roster": ("x", "z", "y")},
        {"min_shops": 3},
        {"clip_norm": 1.0},
        {"spec": changed_spec(kind=RoundKind.GRADIENT_STEP)},
        {"spec": changed_spec(name="triples")},
        {"spec": changed_spec(layout=Layout((("a", (3, 2)), ("b", (4,)))))},
        {"spec": changed_spec(inputs=make_plan().spec.inputs | {"positions": np.array([3, 1, 4])})},
    ],
    ids=lambda change: next(iter(change)),
)
def test_the_digest_binds_every_part_of_the_plan(change):
    assert make_plan(**change).digest != make_plan().digest


def test_an_unprotected_plan_says_so():
    assert make_plan().terms.protection is Protection.NONE
    assert make_plan().terms.guarantee.startswith("none")


def terms(**changes):
    return make_plan().terms.to_json() | changes


def edited(**changes):
    fields = json.loads(make_plan().header) | changes
    return json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"null",
        b"[]",
        b"[" * 100_000,
        b"{}",
        make_plan().header[:-1],
        make_plan().header + b" ",
        edited(format=1),
        edited(extra=1),
        edited(kind="gossip"),
        edited(terms=terms(protection="trust me")),
        edited(terms=terms(min_shops=4)),
        edited(terms=terms(clip_norm=-1.0)),
        edited(terms=terms(privacy={})),
        edited(layout=[["a", "wide"]]),
        edited(inputs=[]),
    ],
    ids=lambda header: header[:12].decode() + f"...{len(header)}",
)
def test_bytes_that_are_not_a_plan_are_refused(header):
    with pytest.raises(BadMessage):
        read_plan(header, make_plan().spec.inputs)


def test_an_input_array_that_was_changed_on_the_way_is_refused():
    plan = make_plan()
    tampered = dict(plan.spec.inputs) | {"positions": np.array([3, 1, 1])}
    with pytest.raises(BadMessage):
        read_plan(plan.header, tampered)
    with pytest.raises(BadMessage):
        read_plan(plan.header, {"positions": plan.spec.inputs["positions"]})


@pytest.mark.parametrize(
    "change",
    [
        {"index": -1},
        {"roster": ()},
        {"roster": ("x", "x")},
        {"min_shops": 0},
        {"min_shops": 4},
        {"clip_norm": 0.0},
        {"clip_norm": float("nan")},
        {"spec": changed_spec(inputs={"names": np.array(["a"])})},
        {"spec": changed_spec(inputs={"foreign byte order": np.arange(3.0).astype(np.dtype(float).newbyteorder())})},
    ],
    ids=str,
)
def test_a_plan_that_makes_no_sense_is_not_built(change):
    with pytest.raises(ConfigError):
        make_plan(**change)


def test_the_items_digest_tells_order_and_borders_apart():
    digests = {items_digest(PublicInputs(np.array(keys))) for keys in (["ab", "c"], ["a", "bc"], ["c", "ab"])}
    assert len(digests) == 3


def test_settings_of_a_model_are_its_fields():
    assert model_settings(Popularity()) == {"settings": {}}


def test_a_model_with_settings_that_are_no_json_values_is_refused():
    @dataclasses.dataclass(frozen=True)
    class Odd:
        name = "odd"
        table: object = dataclasses.field(default_factory=lambda: np.ones(2))

    with pytest.raises(ConfigError, match="odd"):
        model_settings(Odd())
