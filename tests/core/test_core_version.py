"""The name that others are told is that of the package."""

import tomllib
from pathlib import Path

from payagent.core.version import USER_AGENT

PYPROJECT = Path(__file__).parents[2] / "pyproject.toml"


def test_the_version_that_is_told_to_others_is_the_packages() -> None:
    project = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]
    assert f"payagent/{project['version']}" == USER_AGENT
