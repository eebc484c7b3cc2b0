"""The version is written in one place, and the user agent has it."""

import tomllib
from pathlib import Path

import pytest

from payagent.core import version

ROOT = Path(__file__).parents[2]


def test_the_user_agent_has_the_version() -> None:
    assert f"payagent/{version.VERSION}" == version.USER_AGENT


@pytest.mark.parametrize("folder", [ROOT, ROOT / "config/client"], ids=["payagent", "its client"])
def test_a_package_takes_its_version_from_the_code(folder: Path) -> None:
    tables = tomllib.loads((folder / "pyproject.toml").read_text())
    assert "version" not in tables["project"]
    assert (folder / tables["tool"]["hatch"]["version"]["path"]).samefile(version.__file__)
