"""Architecture: nothing leaves a shop but through the door."""

import re
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "fedrec"


def sources():
    return {path.relative_to(PACKAGE).as_posix(): path.read_text() for path in PACKAGE.rglob("*.py")}


def test_only_the_door_makes_a_release():
    makers = [name for name, text in sources().items() if re.search(r"(?<!class )\bRelease\(", text)]
    assert makers == ["federation/release.py"]


def test_only_the_door_knows_its_seal():
    assert [name for name, text in sources().items() if "_SEAL" in text] == ["federation/release.py"]


def test_a_shop_builds_message_content_in_one_room():
    builders = {
        name
        for name, text in sources().items()
        if re.search(r"\b(ArrayRecord|RecordDict|MetricRecord)\((?!\))", text)  # an empty one holds nothing
    }
    assert builders <= {"flower/exchange.py", "flower/local_grid.py", "flower/engines.py"}


def test_the_protocol_knows_nothing_of_flower_or_files():
    for name, text in sources().items():
        if name.startswith("federation/"):
            assert not re.search(r"^\s*(from|import) flwr", text, re.MULTILINE), name
        if name in {"federation/plan.py", "federation/release.py", "federation/shop_side.py"}:
            assert not re.search(r"\bopen\(|\bPath\b", text), name
    assert not re.search(r"\bopen\(|\bPath\b", sources()["federation/coordinator_side.py"])
