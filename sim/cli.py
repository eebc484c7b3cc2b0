"""`scripts/sim`: runs the simulator over a range of seeds.

Never: touches a real wallet, ledger or network.
"""

import re
import sys
from typing import Any

import click

from payagent.cli.options import example, output_options, pass_terminal
from payagent.cli.terminal import Terminal, standard_terminal

_RANGE = re.compile(r"([0-9]{1,12})\.\.([0-9]{1,12})", re.ASCII)
VIOLATED = 1


class _Seeds(click.ParamType):  # type: ignore[type-arg]  # generic for type checkers only
    """A..B: from A up to B, without B."""

    name = "A..B"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> range:
        match = _RANGE.fullmatch(str(value))
        if match is None or int(match[1]) >= int(match[2]):
            self.fail("seeds are A..B with A below B: from A up to B, without B", param, ctx)
        return range(int(match[1]), int(match[2]))


@click.command(epilog=example("scripts/sim --seeds 0..2000"))
@click.option("--seeds", type=_Seeds(), default="0..200", show_default=True, help="From A up to B, without B.")
@click.option("--processes", type=click.IntRange(1, 256), help="Number of processes. Default: one per processor.")
@click.option(
    "--fleet", is_flag=True, help="Run several daemons over one ledger. Its seeds are worlds of their own."
)
@click.option("--channels", is_flag=True, help="Pay calls through channels. Its seeds are worlds of their own.")
@click.option("--story", is_flag=True, help="Print the trace of each seed, step by step.")
@output_options
@pass_terminal
def sim(terminal: Terminal, seeds: range, processes: int | None, fleet: bool, channels: bool, story: bool) -> None:
    """Run the real agent in a simulated world.

    Each seed is a separate world. Its chain forks, its providers and merchants lose answers and lie, its disk
    fills up, and the daemon dies. After every event the simulator checks that nothing was paid twice and that the
    ledger equals the chain. The same seed gives the same run. The exit code is 0 only if no invariant was
    violated. The trace of the first seed that failed is printed step by step.
    """
    from sim.channel_world import ChannelWorld
    from sim.fleet_world import FleetWorld
    from sim.run import Result, Stopwatch, run_seeds, tell_story
    from sim.world import World

    watch, total = Stopwatch(), Result()
    world = ChannelWorld if channels else FleetWorld if fleet else World
    if story:
        for seed in seeds:
            for line in tell_story(seed, world):
                terminal.say(line)
    for part in run_seeds(seeds, processes, world=world):
        total.add(part)
        for seed, violation in part.violations.items():
            terminal.say(f"seed {seed}: {violation}")
        terminal.say(f"{total.seeds} of {len(seeds)} seeds, {len(total.violations)} violations")
    if total.violations and not story:
        first = min(total.violations)
        terminal.say(f"seed {first}, step by step:")
        for line in tell_story(first, world):
            terminal.say(line)
    summary = total.as_json(watch.seconds)
    terminal.give(summary, lambda: _show(terminal, summary))
    if total.violations:
        sys.exit(VIOLATED)


def _show(terminal: Terminal, summary: dict[str, Any]) -> None:
    """Print how often each event was reached, then the violations."""
    reached = summary["reached"]
    width = max((len(f"{count:,}") for count in reached.values()), default=1)
    for event, count in sorted(reached.items(), key=lambda pair: -pair[1]):
        terminal.line(f"{count:>{width},}  {event}")
    for seed, violation in summary["failed"].items():
        terminal.line(f"seed {seed}: {violation}")
    sums = f"{summary['seeds']:,} seeds, {summary['violations']} violations"
    terminal.line(f"{sums}, {summary['seeds_per_s']} seeds a second")


if __name__ == "__main__":
    sim.main(prog_name="scripts/sim", obj=standard_terminal())
