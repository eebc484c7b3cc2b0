"""The manifests for Kubernetes, without a cluster: checked by schema, and a pod's containers run as processes."""

import os
import re
import shlex
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import yaml
from kit.certificates import certificate
from kit.cli import clean_environ, until
from kit.daemon import PASSPHRASE, WORDS
from kit.daemons_of_a_fleet import TOKEN, add_app
from kit.effort import long_only
from kit.pages import blocks
from kit.postgresql import Server, needs_postgresql

from payagent.core.network import NETWORKS
from payagent.devnet.server import DevnetThread
from payagent.settings.loading import load_settings
from payagent.wallet.new_keystore import create

ROOT = Path(__file__).parents[2]
MANIFESTS = sorted((ROOT / "config/kubernetes").glob("*.yaml"))
IMAGE = (ROOT / "config/Dockerfile").read_text()
PAGE, SECTION = "docs/how-to/run-a-fleet.md", "Run it on Kubernetes"

OBJECTS = {
    one["kind"]: one for manifest in MANIFESTS for one in yaml.safe_load_all(manifest.read_text(encoding="utf-8"))
}
POD: dict[str, Any] = OBJECTS["StatefulSet"]["spec"]["template"]["spec"]
FILES, DAEMON = POD["initContainers"][0], POD["containers"][0]
CONFIG: str = OBJECTS["ConfigMap"]["data"]["config.toml"]
PROBE = DAEMON["readinessProbe"]["httpGet"]
HOST = {one["name"]: one["value"] for one in PROBE["httpHeaders"]}
PASSWORD = "the-databases-password"
KUBELET = {"PAYAGENT_PORT": "tcp://10.0.0.1:8402", "PAYAGENT_SERVICE_HOST": "10.0.0.1"}
"""Variables of the Service, which a pod gets unless it asks for none."""


def environ() -> dict[str, str]:
    """The variables of the daemon's container."""
    of_image = dict(re.findall(r"(PAYAGENT_\w+)=(\S+)", IMAGE))
    links = KUBELET if POD.get("enableServiceLinks", True) else {}
    return of_image | links | {one["name"]: one["value"] for one in DAEMON["env"]}


def secrets() -> dict[str, dict[str, str]]:
    """The keys of each Secret that the page makes, with the files they come from."""
    made: dict[str, dict[str, str]] = {}
    lines = "".join(blocks(SECTION, PAGE)).replace("\\\n", " ").splitlines()
    for words in (shlex.split(line) for line in lines if "create secret" in line):
        named = dict(word.removeprefix("--from-file=").split("=", 1) for word in words if "=" in word)
        keys = {"--cert": "tls.crt", "--key": "tls.key"}
        made[words[6]] = {keys.get(name, name): path for name, path in named.items()}
    return made


@long_only
def test_the_manifests_are_what_kubernetes_reads() -> None:
    assert len(OBJECTS) == len({manifest.name for manifest in MANIFESTS}) + 3
    check = [sys.executable, "-m", "kubernetes_validate", "--strict", *map(str, MANIFESTS)]
    checked = subprocess.run(check, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_the_config_of_the_manifests_is_valid_in_the_pods_environment(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text(CONFIG)
    settings = load_settings(path, environ())
    assert settings.wallet.accounts >= OBJECTS["StatefulSet"]["spec"]["replicas"]
    (port,) = DAEMON["ports"]
    assert settings.api.listen.endswith(f":{port['containerPort']}")
    assert HOST["Host"] in settings.api.allowed_hosts
    (service,) = OBJECTS["Service"]["spec"]["ports"]
    assert (service["targetPort"], PROBE["port"]) == (port["name"], port["name"])
    metadata = OBJECTS["Service"]["metadata"]
    assert HOST["Host"] == f"{metadata['name']}.{metadata['namespace']}.svc"


def test_the_pods_run_the_image_as_its_own_user() -> None:
    (user,) = set(re.findall(r"^USER (\d+):\d+$", IMAGE, re.MULTILINE))
    security = POD["securityContext"]
    assert {security[name] for name in ("runAsUser", "runAsGroup", "fsGroup")} == {int(user)}
    for container in (FILES, DAEMON):
        assert container["securityContext"]["capabilities"]["drop"] == ["ALL"]
        assert container["securityContext"]["readOnlyRootFilesystem"] is True


@dataclass
class Pod:
    """The containers of a pod, with its mounts in a folder."""

    folder: Path
    port: int
    ca: Path

    def mapped(self, text: str) -> str:
        text = text.replace(":8402", f":{self.port}")
        return re.sub(r"(?<![\w.])/(data|secrets|from|etc/payagent)(?=/|\b)", rf"{self.folder}/\1", text)

    def start(self, command: list[str], **options: Any) -> "subprocess.Popen[str]":
        variables = {name: self.mapped(value) for name, value in environ().items()}
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        return subprocess.Popen(
            [self.mapped(part) for part in command],
            env=clean_environ() | variables | {"PATH": path},
            text=True,
            **options,
        )

    def run(self, command: list[str]) -> str:
        with self.start(command, stdout=subprocess.PIPE) as process:
            out, _ = process.communicate(timeout=60)
        assert process.returncode == 0, command
        return str(out)

    def is_ready(self) -> bool:
        """As the kubelet asks."""
        url = f"{PROBE['scheme'].lower()}://127.0.0.1:{self.port}{PROBE['path']}"
        try:
            return httpx.get(
                url, headers=HOST, verify=ssl.create_default_context(cafile=self.ca), trust_env=False
            ).is_success
        except httpx.TransportError:
            return False


@contextmanager
def pod(folder: Path, devnet: DevnetThread, url: str) -> Iterator[Pod]:
    """A pod whose daemon is ready, on a devnet and another database."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    for mount in ("data", "secrets", "from/wallet", "from/tls", "etc/payagent"):
        (folder / mount).mkdir(parents=True)
    public, private = certificate(folder)
    made = Pod(folder, port, public)
    create(folder / "keystore.json", WORDS, PASSPHRASE, NETWORKS["devnet"], scrypt_n=2**4)
    content = {
        "keystore.json": (folder / "keystore.json").read_text(),
        "passphrase": PASSPHRASE,
        "operator.token": TOKEN,
        "tls.crt": public.read_text(),
        "tls.key": private.read_text(),
    }
    mounts = {volume["secret"]["secretName"]: volume["name"] for volume in POD["volumes"] if "secret" in volume}
    for secret, keys in secrets().items():
        for key in keys:
            file = folder / "from" / mounts[secret] / key
            file.write_text(content.get(key, PASSWORD))
            file.chmod(0o440)  # as the kubelet leaves it
    config = folder / "etc/payagent/config.toml"
    here = made.mapped(CONFIG).replace('"0.0.0.0', '"127.0.0.1').replace("synchronous = true\n", "")
    for key, value in (
        ("network", "devnet"),
        ("base_url", devnet.chain_url),
        ("origin", devnet.merchant_url),
        ("url", url),
    ):
        here, count = re.subn(rf'^{key} = ".*"$', f'{key} = "{value}"', here, flags=re.MULTILINE)
        assert count == 1, key
    config.write_text(here)
    made.run(FILES["command"])
    made.run(FILES["command"])  # a pod that is started again
    with (folder / "log").open("w") as log, made.start(DAEMON["command"], stderr=log) as daemon:
        try:
            until(lambda: daemon.poll() is not None or made.is_ready(), "the pod is not ready")
            assert daemon.poll() is None, (folder / "log").read_text()
            yield made
        finally:
            daemon.terminate()


@long_only
@needs_postgresql
def test_a_pods_containers_start_a_daemon_that_passes_its_readiness_probe(
    tmp_path: Path, postgresql: Server
) -> None:
    url = postgresql.new_database()
    add_app(url, tmp_path)
    url = postgresql.url_with_password(url, PASSWORD)
    with DevnetThread(block_time_s=1) as devnet, pod(tmp_path / "pod", devnet, url) as made:
        *_, look = "".join(blocks(SECTION, PAGE)).splitlines()
        assert look.startswith("kubectl -n payagent exec payagent-0 -- ")
        shown = yaml.safe_load(made.run(shlex.split(look.partition(" -- ")[2])))
        assert shown["ready"] is True
        assert [row["account"] for row in shown["accounts"]] == [0, 1, 2]
