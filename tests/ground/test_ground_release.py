"""A release is the same bytes each time and complete; the workflows are well-formed. No network is used."""

import json
import re
import runpy
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RELEASE = runpy.run_path(str(ROOT / "scripts/release"))
WORKFLOWS = sorted(map(str, (ROOT / ".github/workflows").glob("*.yml")))
VERSION = r"[0-9]+(?:\.[0-9]+)+[a-z0-9.]*"

pytestmark = pytest.mark.skipif(not (ROOT / ".git").exists(), reason="NOT RUN: a release is built from a commit")


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `scripts/release` builds; it builds twice and fails if the bytes differ."""
    out = tmp_path_factory.mktemp("release") / "dist"
    RELEASE["build"](out)
    return out


def test_a_release_has_packages_of_one_version_a_bill_of_materials_and_checksums(dist: Path) -> None:
    names = " ".join(sorted(path.name for path in dist.iterdir()))
    payagent = rf"cardano_payagent-({VERSION})-py3-none-any\.whl cardano_payagent-\1\.tar\.gz"
    client = r"cardano_payagent_client-\1-py3-none-any\.whl"
    assert re.fullmatch(rf"SHA256SUMS {payagent} {client} sbom\.cdx\.json", names), names


def test_the_checksums_are_those_of_the_files(dist: Path) -> None:
    checked = subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=dist, capture_output=True)
    assert checked.returncode == 0
    assert len((dist / "SHA256SUMS").read_text().splitlines()) == 4


def test_the_packages_have_every_module_of_the_commit(dist: Path) -> None:
    listed = ["git", "ls-tree", "-r", "--name-only", "HEAD", "payagent"]
    committed = set(subprocess.check_output(listed, cwd=ROOT, text=True).splitlines())
    with zipfile.ZipFile(*dist.glob(RELEASE["WHEEL"])) as wheel:
        assert committed <= set(wheel.namelist())
    with tarfile.open(*dist.glob("*.tar.gz")) as sdist:
        assert committed <= {name.partition("/")[2] for name in sdist.getnames()}


def test_the_bill_of_materials_is_valid_and_lists_every_locked_package_with_its_hashes(dist: Path) -> None:
    text = (dist / "sbom.cdx.json").read_text()
    sbom = json.loads(text)
    from cyclonedx.schema import SchemaVersion  # slow to import: each worker would do so to collect the tests
    from cyclonedx.validation.json import JsonStrictValidator

    assert JsonStrictValidator(SchemaVersion.from_version(sbom["specVersion"])).validate_str(text) is None
    locked = re.findall(r"^([A-Za-z0-9._-]+)==([^ ;]+)", (ROOT / "requirements.txt").read_text(), re.MULTILINE)
    assert {(part["name"], part["version"]) for part in sbom["components"]} == {*locked}
    assert all(part["externalReferences"][0]["hashes"] for part in sbom["components"])
    (wheel,) = dist.glob(RELEASE["WHEEL"])
    own = sbom["metadata"]["component"]
    assert (own["name"], own["version"]) == ("cardano-payagent", wheel.name.split("-")[1])


def test_the_workflows_are_well_formed() -> None:
    check = ["check_jsonschema", "--builtin-schema", "vendor.github-workflows", *WORKFLOWS]
    checked = subprocess.run([sys.executable, "-m", *check], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout


def test_the_workflows_run_scripts_that_exist() -> None:
    runs = "\n".join(re.findall(r"run: (.*)", "".join(Path(name).read_text() for name in WORKFLOWS)))
    named = re.findall(r"\S*(?:scripts|\.ci)/\w+(?:\.sh)?", runs)
    assert len(named) >= 3
    assert all((ROOT / name).exists() for name in named)
