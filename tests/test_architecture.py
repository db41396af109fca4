"""Who may import whom, how long a file may be, and that the README's tree is the tree."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "fedrec"
MODULES = sorted(PACKAGE.rglob("*.py"))
APPS = (ROOT / "clients" / "app.py", ROOT / "server" / "app.py")

# Each room may import those of the ranks before its own, and itself; the two of rank 2 not each other.
RANKS = (
    ("errors", "pace"),
    ("data",),
    ("privacy", "secure_aggregation"),
    ("training",),
    ("models",),
    ("evaluation",),
    ("federation",),
    ("reports",),
    ("shop",),
    ("config",),
    ("role_config",),
    ("flower",),
    ("simulation",),
    ("cli",),
)
RANK = {room: rank for rank, rooms in enumerate(RANKS) for room in rooms}
OUTSIDE_THE_ORDER = {
    "": "the package itself: loads simulate when it is asked for",
    "testing": "the contract suites that users import",
}
CLIENT_IMPORTS = {"errors"}

# Third-party packages that only some files may know.
ONLY_IN = {
    "flwr": ("fedrec/flower/*", "clients/app.py", "server/app.py"),
    "ray": ("fedrec/flower/*",),
    "sqlalchemy": ("fedrec/data/database.py", "fedrec/shop/store/*", "fedrec/privacy/ledger_store.py"),
    "matplotlib": ("fedrec/reports/*",),
    "jinja2": ("fedrec/reports/*", "fedrec/shop/api/dashboard.py"),
    "typer": ("fedrec/cli/*",),
    "click": ("fedrec/cli/*",),
    "rich": ("fedrec/cli/*",),
    "opacus": ("fedrec/training/dp_sgd.py", "fedrec/privacy/accounting.py"),
    "dp_accounting": ("fedrec/privacy/accounting.py",),
    "torch": ("fedrec/training/*", "fedrec/models/*"),
    "sentence_transformers": ("fedrec/models/text_encoder.py",),
    "transformers": ("fedrec/models/text_encoder.py",),
    "fastapi": (
        "fedrec/shop/api/*",
        "fedrec/flower/fleet.py",
        "fedrec/flower/_link_compat.py",
    ),
    "starlette": ("fedrec/shop/api/*", "fedrec/flower/fleet.py"),
    "uvicorn": ("fedrec/shop/api/*", "fedrec/flower/fleet.py"),
    "httpx": ("fedrec/client.py", "fedrec/flower/agent.py", "fedrec/flower/_agent_compat.py"),
    "prometheus_client": ("fedrec/shop/api/*", "fedrec/flower/observe.py"),
    "cryptography": (
        "fedrec/secure_aggregation/*",
        "fedrec/privacy/noise.py",
        "fedrec/privacy/draws.py",
        "fedrec/flower/certificates.py",
    ),
    "pytest": ("fedrec/testing/*",),
    "hypothesis": ("fedrec/testing/*",),
    "implicit": (),
    "ranx": (),
    "pickle": (),
}
MAX_LINES = 500


def imported(path: Path) -> Iterator[tuple[str, bool]]:
    """Names of imported modules, and whether the import only serves type checks."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for_types = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node in for_types) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: relative import"
            yield str(node.module), node in for_types
            if node.module == "fedrec":
                yield from ((f"fedrec.{alias.name}", node in for_types) for alias in node.names)


def room_of(module: str) -> str:
    """fedrec.data.split → data."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def broken_order(importer: str, imports: list[str]) -> list[str]:
    """Imports of fedrec modules that the order of rooms forbids."""
    room = room_of(importer)
    if room in OUTSIDE_THE_ORDER:
        return []
    rooms = {name: room_of(name) for name in imports if name.split(".")[0] == "fedrec" and room_of(name)}
    if room == "client":
        return [name for name, other in rooms.items() if other not in CLIENT_IMPORTS]
    return [
        name
        for name, other in rooms.items()
        if (other != room and other in RANK and not RANK[other] < RANK[room]) or other in OUTSIDE_THE_ORDER
    ]


@pytest.mark.parametrize("path", MODULES, ids=module_of)
def test_rooms_import_only_those_before_them(path: Path) -> None:
    assert broken_order(module_of(path), [name for name, _ in imported(path)]) == []


def test_the_order_is_able_to_refuse() -> None:
    assert broken_order("fedrec.models.ease", ["fedrec.federation.plan"]) == ["fedrec.federation.plan"]
    assert broken_order("fedrec.privacy.noise", ["fedrec.secure_aggregation.ring"])
    assert broken_order("fedrec.client", ["fedrec.data.events"])
    assert broken_order("fedrec.cli.simulate", ["fedrec.simulation", "fedrec.errors"]) == []


def test_every_room_has_a_place_in_the_order() -> None:
    names = {path.stem for path in PACKAGE.glob("*.py")} | {path.name for path in PACKAGE.iterdir() if path.is_dir()}
    assert names - {"__init__", "__pycache__"} <= {*RANK, *OUTSIDE_THE_ORDER, "client"}


@pytest.mark.parametrize("path", [*MODULES, *APPS], ids=module_of)
def test_third_party_packages_stay_in_their_rooms(path: Path) -> None:
    place = path.relative_to(ROOT).as_posix()
    packages = {name.split(".")[0] for name, _ in imported(path)}
    strays = [name for name in packages & ONLY_IN.keys() if not any(fnmatch(place, rule) for rule in ONLY_IN[name])]
    assert strays == []


def test_private_names_of_flower_are_in_four_files_only() -> None:
    for path in [*MODULES, *APPS]:
        if path.name in {"_compat.py", "_link_compat.py", "_replies_compat.py", "_agent_compat.py"}:
            continue
        private = [name for name, _ in imported(path) if name.startswith("flwr.") and private_part(name)]
        assert private == [], path


def private_part(name: str) -> bool:
    """Flower's public modules are flwr.app, clientapp, serverapp and simulation; everything else may change."""
    return not re.fullmatch(r"flwr\.(app|clientapp|serverapp|simulation)(\..*)?", name)


def test_no_module_is_called_after_nothing() -> None:
    meaningless = {"utils", "util", "helpers", "common", "misc", "manager"}
    assert [path for path in [*MODULES, *(ROOT / "tests").rglob("*.py")] if path.stem in meaningless] == []


@pytest.mark.parametrize("folder", ["fedrec", "tests", "clients", "server", "simulations"])
def test_no_file_is_too_long(folder: str) -> None:
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in (ROOT / folder).rglob("*.py")}
    assert {path: length for path, length in lengths.items() if length > MAX_LINES} == {}


def tree_in_readme() -> list[str]:
    """Paths of the tree in the README, folders with a slash at the end."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    block = re.search(r"```\n(fedrec/ .*?)```", text, flags=re.DOTALL)
    assert block, "the README has no tree"
    paths = []
    folders: list[str] = []
    for line in block.group(1).splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        folders = [*folders[:depth], line.split()[0]]
        paths.append("".join(folders))
    return paths


def test_the_tree_in_the_readme_is_the_tree() -> None:
    listed = tree_in_readme()
    assert [path for path in listed if not (ROOT / path).exists()] == []
    rooms = {
        f"fedrec/{path.name}{'/' if path.is_dir() else ''}"
        for path in PACKAGE.iterdir()
        if not path.name.startswith("__") and path.name != "py.typed"
    }
    assert rooms - set(listed) == set()


def test_every_direct_dependency_has_a_version_in_the_constraints() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    pinned = {
        line.split("==")[0].lower()
        for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
        if "==" in line
    }
    direct = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    assert {re.split(r"[<>=\[; ]", name)[0].lower() for name in direct} - pinned == set()


@pytest.mark.parametrize(
    "arguments", [["--help"], ["simulate", "--help"], ["recommend", "--help"], ["data", "--help"], ["--version"]]
)
def test_help_loads_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import sys; from fedrec.cli import main; main(sys.argv[1:]);"
        "heavy = {'pandas', 'scipy', 'flwr', 'matplotlib', 'torch', 'numpy', 'pyarrow', 'sqlalchemy', 'pydantic'};"
        "print('loaded:', sorted(heavy & sys.modules.keys()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, cwd=ROOT, check=True, timeout=60
    )
    assert done.stdout.splitlines()[-1] == "loaded: []"
