"""The recipes of docs/contributing: each is applied to a copy of the tree, and what the page runs there passes.

A page lists the files that it changes. A code block after "`path`:" is that file, whole; a diff changes it. The
long run also runs the other checks of a change in the copy.
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from kit.effort import IS_LONG

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs/contributing").glob("*.md"))
LISTED = re.compile(r"^- `([\w./-]+)`: ", re.MULTILINE)
BLOCK = re.compile(r"^`([\w./-]+)`:\n\n```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COMMANDS = re.compile(r"^```sh\n(.*?)^```$", re.MULTILINE | re.DOTALL)
CHECKS = [f"tests/ground/test_ground_{name}.py" for name in ("coverage", "docs", "names", "pages", "rooms")]
IGNORED = (*(ROOT / ".gitignore").read_text().replace("/", "").split(), ".git")
A_TOLL_IS_PAID = '''
"""A merchant asks for a toll, and the agent pays it: the proof is a transaction on the chain."""
import httpx
from kit.agent import ADA, World
from payagent.api.models.payments import Payment
from payagent.devnet.merchant import role_address

async def test_a_toll_is_paid(world: World) -> None:
    to = role_address("pay_to").text
    toll = {"id": "toll-1", "lovelace": "2000000", "to": to, "chain": "cardano-devnet", "seconds": 300}
    request = httpx.Request("POST", f"{world.origin}/chat", json={"message": "hello"})
    world.fund(100 * ADA)
    async with world.run() as run:
        await run.run_pass()
        row, _ = await run.agent.pay(world.ask_of(httpx.Response(402, json={"toll": toll}, request=request)))
        await run.agent.submitter.drain(60)
        await run.settle_down()
        (tx_id,) = world.transactions()
        shown = Payment.of(run.context, run.context.payment(row.id))
        assert shown.headers["Toll-Receipt"] == f"toll-1 {tx_id}"
        assert [(one.address, one.units) for one in shown.outputs] == [(to, 2_000_000)]
'''


@dataclass(frozen=True)
class Tree:
    """A copy of the tree, with a page applied to it."""

    page: Path
    folder: Path
    before: dict[str, bytes] = field(repr=False)

    def run(self, *command: str) -> None:
        """Run a command in the copy, whose packages come before the installed ones."""
        t = self.folder.with_name("t")  # a socket's path has at most 107 bytes
        environ = os.environ | {
            "PYTHONPATH": str(self.folder),
            "PYTEST_ADDOPTS": f"-q -p no:cacheprovider -p pytest_asyncio.plugin -p pytest_timeout --basetemp {t}",
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",  # loading all of them takes longer than most recipes
        }
        done = subprocess.run(command, cwd=self.folder, env=environ, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{self.page.name}: {command}\n{done.stdout[-6000:]}{done.stderr[-2000:]}"

    def changed(self) -> set[str]:
        now = contents(self.folder)
        return {name for name in now.keys() | self.before.keys() if now.get(name) != self.before.get(name)}


def contents(folder: Path) -> dict[str, bytes]:
    """The files of a tree by name, without what git ignores."""
    found = {}
    for path in folder.rglob("*"):
        name = path.relative_to(folder)
        if path.is_file() and not {*name.parts} & {*IGNORED}:
            found[str(name)] = path.read_bytes()
    return found


def apply(text: str, folder: Path) -> None:
    """Write the files of a page's blocks, and change those of its diffs."""
    for name, language, block in BLOCK.findall(text):
        file = folder / name
        if language == "diff":
            file.write_text(patched(file.read_text(), block))
        else:
            assert not file.exists(), f"{name} is there already"
            file.write_text(block)


def patched(text: str, diff: str) -> str:
    """Lines with - or a space must be in the text once, together; those with + or a space come in their place."""
    for hunk in diff.split("@@\n"):
        lines = [line or " " for line in hunk.splitlines()]
        old, new = ("".join(f"{line[1:]}\n" for line in lines if line[0] in marks) for marks in ("- ", "+ "))
        assert text.count(old) == 1, f"{text.count(old)} times in the file:\n{old}"
        text = text.replace(old, new)
    return text


@pytest.fixture(scope="module", params=PAGES, ids=lambda page: page.stem)
def tree(request: pytest.FixtureRequest) -> Iterator[Tree]:
    """Outside of pytest's folders, where planted secrets are searched: the sources of the tests have them."""
    with TemporaryDirectory(prefix="recipe") as scratch:
        folder = Path(scratch) / "tree"
        skipped = {*IGNORED} - {"__pycache__"}  # what is compiled already need not be again
        shutil.copytree(ROOT, folder, ignore=shutil.ignore_patterns(*skipped), symlinks=True)
        (folder / ".venv").symlink_to(sys.prefix)
        before = contents(folder)
        apply(request.param.read_text(), folder)
        yield Tree(request.param, folder, before)


def test_a_recipe_works_and_changes_only_what_it_names(tree: Tree) -> None:
    text = tree.page.read_text()
    tree.run(
        ".venv/bin/python", "-c", f"import payagent; assert payagent.__file__.startswith({str(tree.folder)!r})"
    )
    commands = COMMANDS.findall(text)
    assert commands
    for command in commands:
        tree.run("bash", "-euc", command)
    assert tree.changed() == set(LISTED.findall(text))
    sources = [name for name in tree.changed() if name.endswith(".py")]
    tree.run(".venv/bin/ruff", "check", *sources)
    tree.run(".venv/bin/ruff", "format", "--check", *sources)
    if IS_LONG:
        tree.run(".venv/bin/mypy", "--strict", "payagent", "sim", "benchmarks")
        tree.run(".venv/bin/lint-imports")
        tree.run(".venv/bin/pytest", *CHECKS)


@pytest.mark.parametrize("tree", [page for page in PAGES if page.stem == "add-a-dialect"], indirect=True)
def test_a_402_of_the_recipes_dialect_is_paid(tree: Tree) -> None:
    test = tree.folder / "tests/agent/test_agent_toll.py"
    test.write_text(A_TOLL_IS_PAID)
    try:
        tree.run(".venv/bin/pytest", "tests/agent/test_agent_toll.py")
    finally:
        test.unlink()


def test_a_diff_that_does_not_fit_is_found() -> None:
    assert patched("a\nb\n", " a\n+c\n@@\n-b\n") == "a\nc\n"
    for text in ("b\n", "a\na\n"):
        with pytest.raises(AssertionError):
            patched(text, " a\n+c\n")
