"""The wheel, the sdist and the client's wheel, each installed into a new environment without network."""

import ast
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from importlib.metadata import Distribution, distribution
from pathlib import Path

import pytest
from kit.cli import Shop, clean_environ, until
from kit.effort import pick
from kit.pages import ROOT, blocks
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from payagent.core.version import VERSION

SITE = Path(sysconfig.get_path("purelib"))
UV = Path(sys.executable).with_name("uv")
PACKAGES = {
    "wheel": f"cardano_payagent-{VERSION}-py3-none-any.whl",
    "sdist": f"cardano_payagent-{VERSION}.tar.gz",
    "client": f"cardano_payagent_client-{VERSION}-py3-none-any.whl",
}


def run(*command: str | Path, cwd: Path, code: int = 0, **environ: str) -> str:
    """What a command prints, errors included."""
    inherited = {name: value for name, value in clean_environ().items() if name != "PYTHONPATH"}
    done = subprocess.run(
        list(map(str, command)),
        cwd=cwd,
        env=inherited | environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == code, done.stdout
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the three packages."""
    folder = tmp_path_factory.mktemp("built")
    run(sys.executable, "-m", "hatchling", "build", "-d", folder, cwd=ROOT)
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder, cwd=ROOT / "config/client")
    assert {path.name for path in folder.iterdir()} == {*PACKAGES.values()}
    return folder


class Environment:
    """A new environment of this Python. `site` is where its packages lie."""

    def __init__(self, folder: Path) -> None:
        venv.create(folder, symlinks=True)
        self.folder = folder
        self.bin = folder / "bin"
        self.python = self.bin / "python"
        self.site = folder / SITE.relative_to(sys.prefix)

    def install(self, package: Path) -> None:
        options = ("--offline", "--no-cache", "--no-deps", "--no-build-isolation", "--python", self.python)
        run(UV, "pip", "install", *options, package, cwd=self.folder)

    def borrow_all_dependencies(self) -> None:
        """Let it import the packages of the tests' own environment. Its own come first."""
        (self.site / "borrowed.pth").write_text(f"{SITE}\n")

    def borrow(self, name: str) -> None:
        """Copy one package and the packages that it needs."""
        for package in needed(distribution(name)):
            for path in package.files or ():
                if ".." not in path.parts and path.suffix != ".pyc":
                    (self.site / path).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy(path.locate(), self.site / path)


def needed(package: Distribution) -> list[Distribution]:
    """A package and what it needs without extras."""
    requirements = [Requirement(line) for line in package.requires or ()]
    more = [one.name for one in requirements if one.marker is None or one.marker.evaluate({"extra": ""})]
    return [package, *(each for name in more for each in needed(distribution(name)))]


@pytest.mark.parametrize("kind", ["wheel", "sdist"][: pick(1, 2)])
def test_an_installed_package_is_complete_in_another_folder(built: Path, tmp_path: Path, kind: str) -> None:
    environment = Environment(tmp_path / "env")
    environment.borrow_all_dependencies()
    environment.install(built / PACKAGES[kind])
    payagent = environment.bin / "payagent"
    assert run(payagent, "--version", cwd=tmp_path) == f"payagent, version {VERSION}\n"
    assert "Show payments on a devnet" in run(payagent, "demo", "--help", cwd=tmp_path)
    example = (ROOT / "config/payagent.example.toml").read_text()
    assert run(payagent, "init", "--example", cwd=tmp_path) == example
    unit = environment.folder / "share/payagent/payagent.service"
    assert unit.read_text() == (ROOT / "config/payagent.service").read_text()
    assert files(environment.site / "payagent") == files(ROOT / "payagent")


def files(folder: Path) -> set[str]:
    found = {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}
    return {str(path) for path in found if "__pycache__" not in path.parts}


def test_the_client_pays_in_an_environment_with_httpx_alone(built: Path, shop: Shop, tmp_path: Path) -> None:
    environment = Environment(tmp_path / "env")
    environment.borrow("httpx")
    environment.install(built / PACKAGES["client"])
    run(UV, "pip", "check", "--offline", "--no-cache", "--python", environment.python, cwd=tmp_path)
    names = {canonicalize_name(one.name) for one in needed(distribution("httpx"))}
    assert "pydantic" not in names
    assert "No module named 'pydantic'" in run(environment.python, "-c", "import pydantic", cwd=tmp_path, code=1)
    log = (shop.folder / "daemon.log").read_text()
    (port,) = re.findall(r"serves devnet on http://127\.0\.0\.1(:[0-9]+)", log)
    (program,) = blocks("With httpx", "docs/how-to/pay-from-python.md", "python")
    told = run(
        environment.python,
        "-c",
        program.replace(":8402", port),
        cwd=tmp_path,
        PAYAGENT_TOKEN=shop.made["token"],
        MERCHANT=shop.devnet.merchant_url,
    )
    assert " lovelace\n" in told
    until(lambda: [one["delivery"] for one in shop.payments()] == ["accepted"], "it is not delivered")


def test_the_client_has_the_files_of_the_daemon(built: Path) -> None:
    with (
        zipfile.ZipFile(built / PACKAGES["client"]) as client,
        zipfile.ZipFile(built / PACKAGES["wheel"]) as daemon,
    ):
        shared = [name for name in client.namelist() if ".dist-info/" not in name]
        assert "payagent/client/transport.py" in shared
        assert [name for name in shared if client.read(name) != daemon.read(name)] == []
        wanted = {
            node.module.replace(".", "/")
            for name in shared
            for node in ast.walk(ast.parse(client.read(name)))
            if isinstance(node, ast.ImportFrom) and node.module is not None and node.module.startswith("payagent.")
        }
    assert {one for one in wanted if not {f"{one}.py", f"{one}/__init__.py"} & set(shared)} == set()


def test_the_daemon_refuses_to_start_beside_the_client(built: Path, closed_shop: Shop, tmp_path: Path) -> None:
    beside = (
        f"import sys; sys.path.append({str(built / PACKAGES['client'])!r}); from payagent.cli import main; main()"
    )
    said = run(sys.executable, "-c", beside, "serve", "--config", closed_shop.config, cwd=tmp_path, code=2)
    assert "config_invalid" in said
    assert "cardano-payagent-client is installed beside the daemon" in said
