"""The API does what its description says, whatever is asked; and the description does not change unnoticed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.schemas import APIOperation
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from fedrec.shop.api.app import make_app
from fedrec.shop.api.openapi_file import openapi_text
from fedrec.shop.lists.serving_settings import ServingSettings

from .conftest import Corner, serving

ROOT = Path(__file__).parents[3]
CHECKS = (not_a_server_error, content_type_conformance, response_schema_conformance, status_code_conformance)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Corner, str]]:
    corner = Corner(tmp_path_factory.mktemp("asked"), settings=ServingSettings(requests_per_s=0))
    with serving(make_app({corner.name: corner.live})) as url:
        yield corner, url


OPERATIONS = [found.ok() for found in schemathesis.openapi.from_dict(make_app({}).openapi()).get_all_operations()]


QUESTIONS = [
    (one, mode)
    for one in OPERATIONS
    for mode in GenerationMode
    if mode is GenerationMode.POSITIVE or not one.path.startswith("/health")  # where nothing wrong can be asked
]


@pytest.mark.parametrize(("operation", "mode"), QUESTIONS, ids=lambda one: getattr(one, "label", one))
def test_every_answer_is_as_described(operation: APIOperation, mode: GenerationMode, place: tuple[Corner, str]) -> None:
    corner, url = place

    @settings(max_examples=12, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(case=operation.as_strategy(generation_mode=mode))
    def ask(case: schemathesis.Case) -> None:
        case.call_and_validate(base_url=url, headers=corner.headers(), checks=CHECKS)

    ask()


def test_the_description_did_not_change_unnoticed() -> None:
    kept = (ROOT / "docs" / "openapi.json").read_text(encoding="utf-8")
    assert openapi_text() == kept, "python -m fedrec.shop.api.openapi_file > docs/openapi.json, and look at the change"
