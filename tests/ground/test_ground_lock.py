"""The lock files match pyproject.toml, have hashes and name no registry. No network is used."""

import re
import runpy
from pathlib import Path

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
PYPROJECT = (ROOT / "pyproject.toml").read_text()
LOCK = runpy.run_path(str(ROOT / "scripts/lock"))
PYTHONS = ("3.11", "3.12", "3.13")
FINGERPRINT = re.compile(r"^# compiled from sha256:([0-9a-f]{64})$", re.MULTILINE)


def read_lock(name: str) -> tuple[str, list[Requirement]]:
    text = (ROOT / name).read_text()
    entries = re.sub(r"\\\n", " ", text).splitlines()
    lines = [line.split("--hash")[0].strip() for line in entries if line and not line.startswith("#")]
    return text, [Requirement(line) for line in lines]


def pinned(entries: list[Requirement], python: str) -> dict[str, str]:
    """Name to version of what this CPython version on Linux installs."""
    environment = {**default_environment(), "python_version": python, "python_full_version": f"{python}.0"}
    wanted = [e for e in entries if e.marker is None or e.marker.evaluate({**environment, "extra": ""})]
    return {canonical(e.name): str(e.specifier).removeprefix("==") for e in wanted}


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def direct(kind: str) -> list[Requirement]:
    sources = LOCK["sources"](PYPROJECT)
    extras = [line for extra in EXTRAS[kind] for line in sources["extras"][extra]]
    return [Requirement(line) for line in [*sources["build"], *sources["runtime"], *extras]]


LOCKS = {"runtime": "requirements.txt", "dev": "requirements-dev.txt", "bench": "requirements-bench.txt"}
EXTRAS: dict[str, list[str]] = {"runtime": ["mcp", "x402"], "dev": ["dev"], "bench": ["dev", "bench"]}


@pytest.mark.parametrize("kind", LOCKS)
def test_each_lock_file_was_compiled_from_this_pyproject(kind: str) -> None:
    text, _ = read_lock(LOCKS[kind])
    assert FINGERPRINT.findall(text) == [LOCK["fingerprint"](PYPROJECT)], "run scripts/lock"


@pytest.mark.parametrize("change", [('"click>=', '"clack>='), ('"pytest>=', '"pytest>'), (">=3.11", ">=3.12")])
def test_a_changed_dependency_changes_the_fingerprint(change: tuple[str, str]) -> None:
    assert change[0] in PYPROJECT
    assert LOCK["fingerprint"](PYPROJECT.replace(*change)) != LOCK["fingerprint"](PYPROJECT)


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("kind", LOCKS)
def test_every_direct_dependency_is_pinned_within_its_bounds(kind: str, python: str) -> None:
    versions = pinned(read_lock(LOCKS[kind])[1], python)
    for wanted in direct(kind):
        assert canonical(wanted.name) in versions, wanted.name
        assert wanted.specifier.contains(versions[canonical(wanted.name)], prereleases=True), wanted


@pytest.mark.parametrize("python", PYTHONS)
def test_the_dev_lock_contains_the_runtime_lock_and_the_bench_lock_contains_both(python: str) -> None:
    runtime, dev, bench = (pinned(read_lock(name)[1], python) for name in LOCKS.values())
    assert runtime.items() <= dev.items() <= bench.items()


@pytest.mark.parametrize("name", LOCKS.values())
def test_every_pin_is_exact_and_hashed_and_no_lock_file_has_a_url(name: str) -> None:
    text, entries = read_lock(name)
    assert all(re.fullmatch(r"==[^,*]+", str(entry.specifier)) for entry in entries)
    blocks = re.split(r"^(?=[A-Za-z0-9])", text, flags=re.MULTILINE)[1:]
    assert len(blocks) == len(entries)
    assert all("--hash=sha256:" in block for block in blocks)
    assert "://" not in text
    assert str(ROOT) not in text
    assert not re.search(r"--(index-url|extra-index-url|find-links)", text)


@pytest.mark.parametrize("python", PYTHONS)
def test_the_licences_page_lists_every_runtime_package(python: str) -> None:
    page = (ROOT / "docs/reference/licences.md").read_text()
    told = re.findall(r"^\| (\S+) \| (\S+) \| [^|]+ \|$", page, re.MULTILINE)
    rows = {name: version for name, version in told if name not in ("package", "---")}
    assert rows == pinned(read_lock("requirements.txt")[1], python)
