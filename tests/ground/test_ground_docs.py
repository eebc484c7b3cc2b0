"""The documents: links work, commands exist, numbers match the code, and no machine path is in a file."""

import math
import re
import shlex
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import click
import pytest

from payagent.cli.main import payagent
from payagent.core.money import LOVELACE, format_ada
from payagent.settings.loading import load_settings
from payagent.settings.schema import LimitSettings

ROOT = Path(__file__).parents[2]
IGNORED = {line.rstrip("/") for line in (ROOT / ".gitignore").read_text().split()} | {".git"}
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
REGISTRIES = ("pypi" + ".org", "pythonhosted" + ".org", "npmjs" + ".org", "deb." + "debian.org")
# somebody's home or working folder, unlike a path that every machine has
MACHINE_PATHS = re.compile(r"(?<![\w.])/(?:home/\w|root/|work/|Users/)")


def texts() -> Iterator[Path]:
    for path in sorted(ROOT.rglob("*")):
        names = path.relative_to(ROOT).parts
        if path.is_file() and not IGNORED & set(names) and "egg-info" not in str(path):
            yield path


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


@cache
def anchors(path: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(
        r"^##* (.*)$", re.sub(r"^ *```.*?^ *```$", "", path.read_text(), flags=re.M | re.S), re.M
    )
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def leads_nowhere(path: Path, target: str) -> bool:
    name, _, anchor = target.partition("#")
    there = path.parent / name if name else path
    return not there.exists() or bool(anchor and anchor not in anchors(there))


def test_every_link_leads_to_an_existing_file_and_heading() -> None:
    links = [(path, target) for path in DOCUMENTS for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text())]
    own = [link for link in links if "://" not in link[1]]
    assert len(own) > len(DOCUMENTS)
    assert [(name_of(path), target) for path, target in own if leads_nowhere(path, target)] == []


def test_every_page_named_by_its_path_exists() -> None:
    named = {
        (str(path.relative_to(ROOT)), name)
        for path in texts()
        for name in re.findall(r"\bdocs/[a-z0-9/-]+\.md\b", path.read_bytes().decode(errors="ignore"))
    }
    assert {name for name in named if not (ROOT / name[1]).exists()} == set()


def test_the_docs_index_links_every_page() -> None:
    index = ROOT / "docs/README.md"
    linked = {(index.parent / target).resolve() for target in re.findall(r"\]\(([^)#]+)\)", index.read_text())}
    linked |= set((ROOT / "docs/decisions").glob("0*.md"))
    assert [path for path in DOCUMENTS if index.parent in path.parents and path not in {index, *linked}] == []


def test_the_how_to_pages_are_few_enough_to_find_one() -> None:
    assert len(list((ROOT / "docs/how-to").iterdir())) <= 45


def test_a_long_page_has_a_table_of_contents() -> None:
    long = [path for path in DOCUMENTS if path.read_text().count("\n") > 300]
    contents = re.compile(r"^- \[.*\]\(#", re.MULTILINE)
    assert [name_of(path) for path in long if len(contents.findall(path.read_text())) < 4] == []


def test_every_payagent_command_on_a_page_exists() -> None:
    """By names and options; the tests in tests/cli run the commands."""
    commands = {(name_of(path), line) for path in DOCUMENTS for line in commands_of(path)}
    assert len(commands) > 100
    assert [(page, line, wrong) for page, line in sorted(commands) if (wrong := unknown_word(line))] == []


def commands_of(path: Path) -> list[str]:
    """What follows `payagent` in a page's shell blocks and in its text."""
    text = path.read_text().replace("\\\n", " ")
    shell = "\n".join(re.findall(r"^ *```(?:sh|console)\n(.*?)^ *```$", text, re.MULTILINE | re.DOTALL))
    lines = re.findall(r"(?:^ *|/bin/|&& |\$\()payagent (.*)", shell, re.MULTILINE)
    inline = re.findall(
        r"`payagent ([^`]*)`", re.sub(r"^ *```.*?^ *```$", "", text, flags=re.MULTILINE | re.DOTALL)
    )
    return lines + inline


def unknown_word(line: str) -> str | None:
    """The first word that is no command or option of payagent."""
    command: click.Command = payagent
    for word in shlex.split(re.split(r" (?:[>|&;]|\|\||&&)|\)$", line)[0], comments=True):
        if word.startswith("-"):
            options = {"--help", *(name for one in command.params for name in one.opts)}
            if word.partition("=")[0] not in options:
                return word
        elif isinstance(command, click.Group):
            if word not in command.commands:
                return word
            command = command.get_command(click.Context(command), word) or command
    return None


def test_an_unknown_command_or_option_is_found() -> None:
    assert [unknown_word(line) for line in ("status --json", "statsu", "status --jsno")] == [
        None, "statsu", "--jsno",
    ]  # fmt: skip


def test_no_file_names_a_package_registry_or_a_personal_path() -> None:
    found = []
    for path in texts():
        text = path.read_bytes().decode(errors="ignore")
        hits = [host for host in REGISTRIES if host in text] + MACHINE_PATHS.findall(text)
        found += [(str(path.relative_to(ROOT)), hit) for hit in hits]
    assert found == []


def test_a_personal_path_would_be_found() -> None:
    assert MACHINE_PATHS.search("see /wo" + "rk/main")
    assert not MACHINE_PATHS.search("https://a.example/work/x ~/.config /run/user/7")


def test_the_architecture_page_names_every_package_and_module() -> None:
    house = (ROOT / "ARCHITECTURE.md").read_text()
    rooms = [path.parent.name + "/" for path in (ROOT / "payagent").glob("*/__init__.py")]
    modules = [path.name for path in (ROOT / "payagent").glob("*.py") if path.name != "__init__.py"]
    assert [
        name for name in rooms + modules if not re.search(rf"^  {re.escape(name)}\s", house, re.MULTILINE)
    ] == []


def test_the_walk_through_a_payment_names_few_files_and_each_exists() -> None:
    house = (ROOT / "ARCHITECTURE.md").read_text()
    walk = house.partition("## How a payment flows")[2].partition("\n## ")[0]
    files = set(re.findall(r"[\w/]+\.py\b", walk))
    assert 15 < len(files) <= 25
    assert [name for name in sorted(files) if not (ROOT / "payagent" / name).is_file()] == []


def limits_by_default(folder: Path, network: str) -> LimitSettings:
    config = folder / "config.toml"
    provider = '[[chain.providers]]\nkind = "blockfrost"\nbase_url = "http://127.0.0.1/"\n'
    config.write_text(f'network = "{network}"\n{provider}')
    return load_settings(config, {"HOME": str(folder)}).limits


def test_the_readme_shows_the_default_limits_and_is_short(tmp_path: Path) -> None:
    limits = limits_by_default(tmp_path, "mainnet")
    per_payment, per_day = format_ada(limits.per_payment_lovelace), format_ada(limits.per_day_lovelace)
    readme = (ROOT / "README.md").read_text()
    assert f"a payment may cost {per_payment} and a day {per_day}" in " ".join(readme.split())
    prose = re.sub(r"^ *```.*?^ *```$", "", readme, flags=re.MULTILINE | re.DOTALL)
    assert len(prose.split()) <= 1_000
    lines = readme.splitlines()
    assert any("overview-light.png" in line for line in lines[:40])
    assert any("import OpenAI" in line for line in lines[:80])


def test_the_page_says_how_much_a_compromised_daemon_takes_in_a_day_by_default(tmp_path: Path) -> None:
    """In each run `signed_per_day` and as much in fees. Both sums begin at zero with each run."""
    limits = limits_by_default(tmp_path, "preprod")
    (starts,) = re.findall(r"^StartLimitBurst=(\d+)$", (ROOT / "config/payagent.service").read_text(), re.M)
    (restarts,) = re.findall(r"restart: on-failure:(\d+)\b", (ROOT / "config/compose.yml").read_text())
    # systemd's day begins with its first start, so the starts of two days can fall into 24 hours
    runs = [1, 2 * int(starts), 1 + int(restarts)]
    page = (ROOT / "docs/how-to/limit-spending.md").read_text()
    rows = re.findall(r"^\| .* \| (\d+) \| ([\d.]+ ADA) \|$", page, re.MULTILINE)
    assert rows == [(str(count), format_ada(count * 2 * limits.day_caps[LOVELACE])) for count in runs]


def test_the_waits_on_the_page_follow_from_random_blocks_every_20_s() -> None:
    """The n-th block comes within t with the probability of Erlang's distribution."""
    page = (ROOT / "docs/explanation/how-long-a-paid-call-takes.md").read_text()
    rows = re.findall(r"the (first|third)\W.*\| (\d+) s, (\d+) s, (\d+) s \|", page)
    assert len(rows) == 3
    for block, *waits in rows:
        for wait, share in zip(waits, (0.5, 0.95, 0.99), strict=True):
            blocks = int(wait) / 20
            fewer = sum(blocks**n / math.factorial(n) for n in range({"first": 1, "third": 3}[block]))
            assert 1 - math.exp(-blocks) * fewer == pytest.approx(share, abs=0.01)


def test_the_readmes_commands_are_valid_shell() -> None:
    blocks = re.findall(r"^ *```sh\n(.*?)^ *```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 8
    script = "\n".join(re.sub(r"(?m)^ {3,4}", "", block) for block in blocks)
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)


@pytest.mark.parametrize("name", ["scripts/demo", "scripts/test", "scripts/lock", ".ci/run"])
def test_the_scripts_are_executable(name: str) -> None:
    assert (ROOT / name).stat().st_mode & 0o111 == 0o111
