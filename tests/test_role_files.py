"""The files that operators copy: settings as the commands write them, services and containers that may do little."""

import configparser
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from typer.main import get_command

from fedrec.cli import app
from fedrec.errors import ConfigError
from fedrec.flower.observe import serve_metrics
from fedrec.role_config import coordinator_toml, read_coordinator, read_shop, shop_toml

ROOT = Path(__file__).parents[1]
UNITS = (
    ROOT / "server" / "fedrec-coordinator.service",
    ROOT / "clients" / "fedrec-shop.service",
    ROOT / "clients" / "fedrec-shop-api.service",
)
COMPOSE = (ROOT / "server" / "compose.yaml", ROOT / "clients" / "compose.yaml")
PAGES = ("README.md", "server/README.md", "clients/README.md", "docs/deploy.md", "docs/store.md")
PORTS = {"coordinator": "7480", "shop": "7481", "api": "8080"}
HEALTH = {"coordinator": "/health", "shop": "/health", "api": "/health/ready"}


def refusal(words: list[str]) -> str:
    """Why the command line has no such command or option; "" where it has."""
    command: click.Command = get_command(app)
    options = {name for one in command.params for name in one.opts}
    for place, word in enumerate(words):
        if isinstance(command, click.Group) and not word.startswith("-"):
            if word not in command.commands:
                return f"{command.name} has no command {word!r}"
            command = command.commands[word]
            options = {"--help", *(name for one in command.params for name in (*one.opts, *one.secondary_opts))}
        elif word.startswith("-") and word.split("=")[0] not in options:
            return f"{' '.join(words[:place])} has no option {word}"
    return ""


def unit(path: Path) -> configparser.SectionProxy:
    """The service section."""
    parser = configparser.ConfigParser(interpolation=None)
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    parser.read_string(path.read_text(encoding="utf-8"))
    return parser["Service"]


def commands_in(text: str) -> list[list[str]]:
    """Command lines of a page's code blocks and of its words in backticks."""
    blocks = re.findall(r"```[a-z]*\n(.*?)```", text, flags=re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    lines += re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    found = (re.match(r"(?:\$ )?fedrec ([a-z].*)", line) for line in lines)
    return [shlex.split(match.group(1), comments=True) for match in found if match]


def test_the_coordinators_file_is_what_init_writes(tmp_path: Path) -> None:
    text = (ROOT / "server" / "coordinator.toml").read_text(encoding="utf-8")
    assert text == coordinator_toml("federation", public_host="coordinator.example.org", items="items.csv")
    (tmp_path / "coordinator.toml").write_text(text)
    assert read_coordinator(tmp_path).address.metrics_port == int(PORTS["coordinator"])


def test_the_shops_file_is_what_enrol_writes(tmp_path: Path) -> None:
    text = (ROOT / "clients" / "shop.toml").read_text(encoding="utf-8")
    assert text == shop_toml("north", public_shoppers=2000, events="events.csv", items="items.csv")
    (tmp_path / "shop.toml").write_text(text)
    assert read_shop(tmp_path).metrics_port == int(PORTS["shop"])


def test_a_shop_says_what_its_events_say(tmp_path: Path) -> None:
    text = (ROOT / "clients" / "shop.toml").read_text(encoding="utf-8")
    path, line = tmp_path / "shop.toml", "# strengths = { view = 0.2, cart = 0.5 }"
    assert line in text
    path.write_text(text.replace(line, "strengths = { view = 0.4 }"))
    strengths = read_shop(tmp_path).serving.settings().lists.taste.strengths
    assert (strengths["view"], strengths["cart"], strengths["purchase"]) == (0.4, 0.5, 1.0)
    for wrong in ("view = 1.4", "dislike = 0.5", "glance = 0.5"):
        path.write_text(text.replace(line, f"strengths = {{ {wrong} }}"))
        with pytest.raises(ConfigError, match="strength"):
            read_shop(tmp_path)


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.stem)
def test_a_service_gives_a_command_that_exists_and_no_rights(path: Path) -> None:
    service = unit(path)
    program, *words = shlex.split(service["ExecStart"])
    assert program.endswith("/bin/fedrec")
    assert refusal(words) == ""
    assert words[2].startswith(service["ReadWritePaths"] + "/")
    assert service["User"] not in ("", "root")
    assert service["ProtectSystem"] == "strict"
    assert service["Restart"] == "on-failure"
    assert service["CapabilityBoundingSet"] == ""
    assert service["UMask"] == "0077"
    for name in ("NoNewPrivileges", "PrivateTmp", "ProtectHome", "PrivateDevices"):
        assert service[name] == "true"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd here")
@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.stem)
def test_systemd_knows_every_line_of_a_service(path: Path, tmp_path: Path) -> None:
    copy = tmp_path / path.name
    copy.write_text(path.read_text(encoding="utf-8").replace("/opt/fedrec/bin/fedrec", "/bin/true"))
    done = subprocess.run(["systemd-analyze", "verify", str(copy)], capture_output=True, text=True, timeout=60)
    ours = [line for line in done.stderr.splitlines() if path.name in line or str(copy) in line]
    assert (done.returncode, ours) == (0, [])


@pytest.mark.parametrize("path", COMPOSE, ids=lambda path: path.parent.name)
def test_a_container_gives_a_command_that_exists_and_no_rights(path: Path) -> None:
    services: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))["services"]
    assert set(services) == ({"coordinator"} if path.parent.name == "server" else {"shop", "api"})
    path_of_image = re.findall(r"FEDREC_HEALTH_PATH=(\S+)", (ROOT / "Dockerfile").read_text(encoding="utf-8"))
    for role, service in services.items():
        assert refusal(service["command"]) == ""
        assert service["command"][:2] == {"api": ["shop", "serve"]}.get(role, [role, "run"])
        assert service["environment"]["FEDREC_HEALTH_PORT"] == PORTS[role]
        assert service["environment"].get("FEDREC_HEALTH_PATH", path_of_image[0]) == HEALTH[role]
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert (path.parent / service["build"]).resolve() == ROOT
    for line in re.findall(r"compose -f \S+ run --rm \S+ (.*)", path.read_text(encoding="utf-8")):
        assert refusal(shlex.split(line)) == ""


def test_only_the_coordinators_container_opens_a_port_to_others() -> None:
    services = {role: one for path in COMPOSE for role, one in yaml.safe_load(path.read_text())["services"].items()}
    opened = {role: service.get("ports") for role, service in services.items()}
    assert opened == {"coordinator": ["7443:7443"], "shop": None, "api": ["127.0.0.1:8080:8080"]}
    command = services["api"]["command"]
    assert command[command.index("--port") + 1] == PORTS["api"]
    assert command[command.index("--host") + 1] == "0.0.0.0"  # of the container


def test_the_image_runs_without_root_on_the_package_alone() -> None:
    lines = (ROOT / "Dockerfile").read_text(encoding="utf-8").splitlines()
    stages = [line for line in lines if line.startswith("FROM ")]
    assert [line.split()[1] for line in stages] == ["python:3.11-slim"] * 2
    last = lines[lines.index(stages[-1]) :]
    assert next(line for line in reversed(last) if line.startswith("USER ")) == "USER fedrec"
    assert 'ENTRYPOINT ["fedrec"]' in last
    assert any("/health" in line for line in last)
    copied = {
        name for line in lines if line.startswith("COPY ") and "--from" not in line for name in line.split()[1:-1]
    }
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert copied == allowed
    assert all((ROOT / name).exists() for name in copied)


@pytest.mark.parametrize("is_well", [True, False])
def test_the_images_health_check_asks_the_health_page(is_well: bool) -> None:
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", "")
    match = re.search(r"(?m)^HEALTHCHECK .*? CMD (\[.*\])$", text)
    assert match
    program, *arguments = json.loads(match.group(1))
    assert program == "python"
    with serve_metrics(0, lambda: (is_well, {})) as port:
        environment = {**os.environ, "FEDREC_HEALTH_PORT": str(port), "FEDREC_HEALTH_PATH": HEALTH["shop"]}
        done = subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, timeout=60)
    assert (done.returncode == 0) is is_well


@pytest.mark.parametrize("page", PAGES)
def test_every_command_on_a_page_exists(page: str) -> None:
    commands = commands_in((ROOT / page).read_text(encoding="utf-8"))
    assert commands
    assert [why for words in commands if (why := refusal(words))] == []


def test_the_table_of_threats_names_tests_that_exist() -> None:
    text = (ROOT / "server" / "README.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`(tests/[^`]+)`", text))
    assert len(named) > 10
    assert sorted(name for name in named if not (ROOT / name).exists()) == []


def test_a_command_that_does_not_exist_is_noticed() -> None:
    assert refusal(["shop", "enroll", "DIR"]) == "shop has no command 'enroll'"
    assert refusal(["shop", "run", "DIR", "--rooster=x"]) == "shop run DIR has no option --rooster=x"
    assert commands_in("```\n$ fedrec shop run DIR # now\n```\n`fedrec audit`") == [["shop", "run", "DIR"], ["audit"]]
