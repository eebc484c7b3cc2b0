"""The container image and the compose file, without a container engine: what they say is run as processes."""

import json
import re
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from kit.cli import clean_environ, until
from kit.effort import long_only
from kit.pages import blocks

from payagent.chain.open import KINDS
from payagent.secret_file import require_out_of_reach

ROOT = Path(__file__).parents[2]
COMPOSE, IMAGE = ROOT / "config/compose.yml", (ROOT / "config/Dockerfile").read_text()
SERVICES: dict[str, Any] = yaml.safe_load(COMPOSE.read_text())["services"]
PAGE = "docs/how-to/run-in-a-container.md"
CHAIN, CHAIN_PAGE = ROOT / "config/chain.yml", "docs/how-to/read-the-chain-without-a-third-party.md"


class Containers:
    """The services' commands as they stand, with the containers' paths in a folder and other ports."""

    def __init__(self, folder: Path) -> None:
        self._here = {"/data": f"{folder}/data", "/run/payagent": f"{folder}/run", "$$": "$"}
        for volume in ("data", "run"):
            (folder / volume).mkdir(mode=0o700)
        for port in (":8402", ":8490"):
            with socket.create_server(("127.0.0.1", 0)) as free:
                self._here[port] = f":{free.getsockname()[1]}"
        variables = re.findall(r"(PAYAGENT_\w+)=(\S+)", IMAGE)
        self._environ = clean_environ() | {name: self._mapped(value) for name, value in variables}
        self._environ |= {"PATH": f"{Path(sys.executable).parent}:{self._environ['PATH']}"}
        self._environ |= {"PAYAGENT_API__LISTEN": self._mapped("127.0.0.1:8402")}
        self._processes: dict[str, subprocess.Popen[str]] = {}

    def _mapped(self, text: str) -> str:
        for there, here in self._here.items():
            text = text.replace(there, here)
        return text

    def start(self, command: list[str]) -> "subprocess.Popen[str]":
        mapped = [self._mapped(part) for part in command]
        return subprocess.Popen(mapped, env=self._environ, stdout=subprocess.PIPE, text=True)

    def run(self, command: list[str]) -> str:
        """What a command prints."""
        with self.start(command) as process:
            out, _ = process.communicate(timeout=60)
        assert process.returncode == 0, command
        return out

    def up(self, name: str) -> "subprocess.Popen[str]":
        """Start a service after those that it depends on, as Compose does."""
        for other, needs in SERVICES[name].get("depends_on", {}).items():
            process = self._processes.get(other) or self._processes.setdefault(other, self.up(other))
            if needs["condition"] == "service_healthy":
                until(lambda other=other: self._is_healthy(other), f"{other} is not healthy", every_s=1)
            else:
                assert needs["condition"] == "service_completed_successfully"
                assert process.wait(60) == 0, other
        return self.start(SERVICES[name].get("command") or of_image("CMD"))

    def _is_healthy(self, name: str) -> bool:
        kind, *test = SERVICES[name].get("healthcheck", {}).get("test") or ["CMD", *of_image("HEALTHCHECK .* CMD")]
        assert kind == "CMD"
        with self.start(test) as process:
            process.communicate(timeout=60)
        return process.returncode == 0

    def down(self) -> None:
        for process in reversed(self._processes.values()):
            process.terminate()
            process.communicate(timeout=60)


def of_image(instruction: str) -> list[str]:
    """The command of an instruction of the Dockerfile."""
    (command,) = re.findall(rf"^{instruction} (\[.*\])$", IMAGE, re.MULTILINE)
    return list(json.loads(command))


@contextmanager
def containers(folder: Path) -> Iterator[Containers]:
    made = Containers(folder)
    try:
        yield made
    finally:
        made.down()


def docker(made: Containers, line: str) -> str:
    """What a line of the page prints. `build` and `down` are the engine's own work."""
    arguments = shlex.split(line.removeprefix("docker ").removeprefix("compose -f config/compose.yml "))
    if arguments[:2] == ["run", "--rm"]:
        (name,) = arguments[2:]
        with made.up(name) as service:
            out, _ = service.communicate(timeout=60)
        assert service.returncode == 0, name
        return out
    if arguments[:2] == ["exec", "payagent"]:
        return made.run(arguments[2:])
    assert arguments in (["build"], ["down", "--volumes"]), line
    return ""


def lines(heading: str) -> list[str]:
    """The commands of the page's section, one a line."""
    return "".join(blocks(heading, PAGE)).replace("\\\n", " ").splitlines()


def without_fee(shown: str) -> str:
    """The client's output without the lovelace of the fee."""
    return re.sub(r"(?<=^200 13)\d{6} ", " ", shown)


@long_only
def test_the_pages_commands_let_a_client_container_pay(tmp_path: Path) -> None:
    with containers(tmp_path) as made:
        outs = [docker(made, line) for line in (*lines("Try it"), *lines("Let a client container pay"))]
        again = docker(made, lines("Try it")[1])
    (shown,) = blocks("Try it", PAGE, "text")
    for out in (outs[1], again):
        assert without_fee(out).startswith(without_fee(shown).partition("...")[0])
    assert "pay_" in outs[2]
    assert (tmp_path / "run/agent.json").stat().st_mode & 0o777 == 0o600


def test_a_client_container_reaches_nothing_but_the_socket_and_its_token() -> None:
    client = SERVICES["client"]
    assert client["network_mode"] == "none"
    assert client["volumes"] == ["run:/run/payagent:ro"]
    assert all(service["read_only"] and service["cap_drop"] == ["ALL"] for service in SERVICES.values())


@long_only
@pytest.mark.parametrize("file", [COMPOSE, CHAIN], ids=lambda file: file.name)
def test_the_compose_files_are_well_formed(file: Path) -> None:
    check = ["check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(file)]
    checked = subprocess.run([sys.executable, "-m", *check], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout


def test_the_chain_of_ones_own_is_served_on_this_machine_where_payagent_looks_for_it() -> None:
    services = yaml.safe_load(CHAIN.read_text())["services"]
    ports = [port for service in services.values() for port in service.get("ports", [])]
    kind = KINDS["ogmios-kupo"]
    urls = (kind.urls["mainnet"], kind.index_urls["mainnet"])
    assert [f"http://{port.rpartition(':')[0]}" for port in ports] == list(urls)
    (toml,) = blocks("Your own node: Ogmios with Kupo", CHAIN_PAGE, "toml")
    assert all(f'"{url}"' in toml for url in urls)
    assert not [part for part in services["kupo"]["command"] if "prune" in part]
    needed = set(re.findall(r"\$\{(\w+):\?\}", CHAIN.read_text()))
    assert needed <= set(re.findall(r"\b([A-Z_]+)=", (ROOT / CHAIN_PAGE).read_text()))


def test_the_image_installs_locked_requirements_and_does_not_run_as_root() -> None:
    assert "--require-hashes -r requirements.txt" in IMAGE
    user = re.findall(r"^USER (\d+):(\d+)$", IMAGE, re.MULTILINE)[-1]
    assert int(user[0]) > 0
    assert int(user[1]) > 0


def test_the_base_image_has_a_full_tag_that_a_digest_can_replace() -> None:
    (base,) = re.findall(r"^ARG BASE=(python:\d+\.\d+\.\d+-slim-\w+)$", IMAGE, re.MULTILINE)
    assert {line.split()[1] for line in IMAGE.splitlines() if line.startswith("FROM")} == {"${BASE}"}
    inspect, build = lines("Pin the base image")
    assert base in inspect
    assert f"--build-arg BASE={base}@sha256:" in build


def test_the_image_is_built_from_what_the_dockerfile_copies_and_nothing_else(tmp_path: Path) -> None:
    lists = re.findall(r"^COPY ([^-].*) \S+$", IMAGE, re.MULTILINE)
    copied = sorted(name for names in lists for name in names.split())
    let_in = (ROOT / ".dockerignore").read_text().splitlines()
    assert sorted(line.removeprefix("!") for line in let_in if line.startswith("!")) == copied
    assert "*" in let_in, "nothing else of a checkout, such as a wallet, may get into an image"
    for name in copied:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, tmp_path / name, symlinks=True)
        else:
            shutil.copy(ROOT / name, tmp_path / name)
    assert [path for path in tmp_path.rglob("*") if not path.exists()] == [], "the target of a link is not copied"
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel"]
    built = subprocess.run(build, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr


def test_the_images_config_is_outside_the_data_dir() -> None:
    variables = dict(re.findall(r"PAYAGENT_(CONFIG|DATA_DIR)=(\S+)", IMAGE))
    require_out_of_reach([Path(variables["CONFIG"])], [Path(variables["DATA_DIR"])])


def test_docker_restarts_the_daemon_ten_times_and_no_more() -> None:
    """Each start resets the sums of the signer, so `always` and `unless-stopped` would undo `signed_per_day`."""
    assert SERVICES["payagent"]["restart"] == "on-failure:10"
    assert [name for name, service in SERVICES.items() if "restart" in service] == ["payagent"]
    (detached,) = (line for line in lines("On a real network") if " -d " in line)
    assert "--restart on-failure:10 " in detached
