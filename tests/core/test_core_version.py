"""The user agent names the version of the package."""

import tomllib
from pathlib import Path

from payagent.core.version import USER_AGENT

PYPROJECT = Path(__file__).parents[2] / "pyproject.toml"


def test_the_user_agent_has_the_version_of_the_package() -> None:
    project = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]
    assert f"payagent/{project['version']}" == USER_AGENT
