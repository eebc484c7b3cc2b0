"""The agent dies at a commit of five payments and restarts on what the disk held: all five still complete.

The script has over a hundred sites ("before" and "after" each commit). The sample takes one of each of some names,
the long set every 6th; both change daily and are printed. `CRASH_SITES=all` takes all, `CRASH_SITES=3,17` those.
"""

import asyncio
import os
import signal
import sys
import time
from pathlib import Path

import pytest
from kit.agent import ADA
from kit.crash import UTXOS, CrashWorld, Dead, Disk, Script, assert_done, crash_world, outer_world
from kit.effort import IS_LONG, pick

EVERY = 6
SAMPLE = ("before sign", "after sign", "before answer", "after cancel")
KILLED = ("after submit", "before sign", "after cancel")[: pick(1, 3)]
COMMITS = {"admit", "sign", "submit", "answer", "observe", "confirm", "delivery", "cancel", "void", "deposit"}
SELECTED = os.environ.get("CRASH_SITES", "")


async def live(world: CrashWorld, script: Script, disk: Disk) -> None:
    """Run the process until it dies or the script ends."""
    world.guard.gone = False
    async with world.run(checkpoint=disk, providers={"devnet": world.guard.url}) as run:
        await script.drive(run, lambda: not disk.dead)
        assert_done(world, run, script)


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The names of all sites, from a run without a crash."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "marks").mkdir()
    with crash_world(folder) as world:
        world.fund(*[50 * ADA] * UTXOS)
        disk = Disk(folder)
        asyncio.run(live(world, Script(world, folder / "marks"), disk))
        return disk.sites


def chosen(sites: list[str]) -> list[int]:
    if SELECTED == "all":
        return list(range(1, len(sites) + 1))
    if SELECTED:
        return [int(number) for number in SELECTED.split(",")]
    day = int(time.time()) // 86_400
    if IS_LONG:
        numbers = list(range(1 + day % EVERY, len(sites) + 1, EVERY))
    else:
        by_name = [[number for number, site in enumerate(sites, 1) if site == name] for name in SAMPLE]
        numbers = [alike[day % len(alike)] for alike in by_name]
    print(f"sites {numbers}")
    return numbers


async def crash_and_recover(folder: Path, site: int) -> str:
    """Crash at a site and recover; returns the site's name, raises if the script does not complete."""
    (folder / "marks").mkdir(parents=True)
    with crash_world(folder) as world:
        world.fund(*[50 * ADA] * UTXOS)
        script = Script(world, folder / "marks")

        def die() -> None:
            world.guard.gone = True

        disk = Disk(folder, site, kept=folder / "kept", die=die)
        with pytest.raises(Dead):
            await live(world, script, disk)
        world.in_folder(folder / "kept")
        await live(world, script, Disk(folder / "kept"))
        return disk.sites[-1]


@pytest.mark.timeout(1200)
async def test_five_payments_complete_after_a_crash_before_or_after_a_commit(
    tmp_path: Path, sites: list[str]
) -> None:
    assert {name.split()[1] for name in sites} >= COMMITS
    failures = {}
    numbers = chosen(sites)
    for number in numbers:
        try:
            await crash_and_recover(tmp_path / f"site{number}", number)
        except (Exception, pytest.fail.Exception) as error:  # noqa: BLE001  every failure is reported
            failures[number, sites[number - 1]] = repr(error)[:800]
    print(f"{len(numbers)} of {len(sites)} sites")
    assert not failures


@pytest.mark.parametrize("name", KILLED)
async def test_five_payments_complete_after_the_process_is_killed(
    tmp_path: Path, sites: list[str], name: str
) -> None:
    """The same with a real process, which kills itself at the last commit of this name."""
    site = len(sites) - sites[::-1].index(name)
    folder = tmp_path / "killed"
    (folder / "marks").mkdir(parents=True)
    with crash_world(folder) as world:
        world.fund(*[50 * ADA] * UTXOS)
        devnet = world.devnet
        child = await asyncio.create_subprocess_exec(
            *(sys.executable, __file__, str(folder), str(site), world.guard.url),
            *(devnet.origin, devnet.merchant_url),
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        assert await child.wait() == -signal.SIGKILL
        await live(world, Script(world, folder / "marks"), Disk(folder))


async def _child(folder: str, site: str, chain_url: str, origin: str, merchant_url: str) -> None:
    urls = {"chain_url": chain_url, "origin": origin, "merchant_url": merchant_url}
    world = outer_world(Path(folder), urls)
    disk = Disk(world.folder, int(site), die=lambda: os.kill(os.getpid(), signal.SIGKILL))
    async with world.run(checkpoint=disk, providers={"devnet": chain_url}) as run:
        await Script(world, world.folder / "marks").drive(run)


if __name__ == "__main__":
    asyncio.run(_child(*sys.argv[1:]))
