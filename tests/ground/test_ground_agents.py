"""What agents read: the skill, llms.txt and the entry for the MCP registry say what payagent has."""

import json
import re
import tomllib
from pathlib import Path
from typing import get_args

import click
import yaml

from payagent.cli.main import payagent
from payagent.core.version import VERSION
from payagent.mcp.results import Outcome

ROOT = Path(__file__).parents[2]
SKILL = ROOT / "docs/agents/payagent/SKILL.md"


def test_the_skill_has_the_front_matter_that_clients_require() -> None:
    _, front, body = SKILL.read_text().split("---\n", 2)
    members = yaml.safe_load(front)
    assert members["name"] == SKILL.parent.name
    assert 0 < len(members["description"]) <= 1024
    assert len(members["compatibility"]) <= 500
    assert body.count("\n") < 500


def test_the_skill_explains_every_outcome() -> None:
    assert set(re.findall(r"^\| `(\w+)` \|", SKILL.read_text(), re.MULTILINE)) == set(get_args(Outcome))


def test_every_link_of_llms_txt_leads_to_a_page() -> None:
    text = (ROOT / "docs/llms.txt").read_text()
    assert re.match(r"# payagent\n\n> \w", text)
    for target in re.findall(r"^- \[[^]]+\]\(([^)]+)\)", text, re.MULTILINE):
        assert (ROOT / "docs" / target).is_file(), target


def test_the_registry_entry_has_what_its_schema_requires_and_names_an_existing_command() -> None:
    entry = json.loads((ROOT / "docs/agents/server.json").read_text())
    assert re.fullmatch(r"[a-zA-Z0-9.-]+/[a-zA-Z0-9._-]+", entry["name"])
    assert 0 < len(entry["description"]) <= 100
    (package,) = entry["packages"]
    assert entry["version"] == package["version"] == VERSION
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert package["identifier"] == project["name"]
    assert package["identifier"] in project["scripts"]
    assert (package["registryType"], package["transport"]["type"]) == ("pypi", "stdio")
    # the registry looks for the name in the description on PyPI, with a blank or the comment's end behind it
    readme = (ROOT / project["readme"]).read_text()
    assert re.findall(r"mcp-name: (\S+)(?=\s)", readme) == [entry["name"]]
    command: click.Command = payagent
    for argument in package["packageArguments"]:
        if argument["type"] == "positional":
            assert isinstance(command, click.Group)
            found = command.get_command(click.Context(command), argument["value"])
            assert found is not None
            command = found
        else:
            assert argument["name"] in [name for one in command.params for name in one.opts]
