"""Mutants of the tables: each cell of EFFECTS dropped, doubled or swapped, and each cell of the UTxO table.

The judge or `ledger verify` has to find each one: neither of them reads the tables. `./scripts/evidence mutants`
does not run them; this does:

    python tests/simulation/effect_mutants.py all 0..400     each mutant, with the seed that finds it

Its report and the mutants that live: docs/evidence/mutation.md.
"""

import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from os import sched_getaffinity
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

from simulation.mutants import put, put_in, without_guards

from payagent.core import utxo
from payagent.core.changes import Changes
from payagent.core.payment import apply as columns
from payagent.core.payment.machine import EFFECTS, Effect
from payagent.core.utxo import Books, FreeSet, UtxoMove, UtxoState
from sim.stage import SimStage

COLUMNS = ("record", "journal", "hold", "inputs", "outputs", "prepaid", "merchant", "alert")
Mutation = tuple[str, str, str]
"""(the row: its event and the states before it; the column; what is done to the cell)."""


def rows() -> dict[str, list[Any]]:
    """Keys of EFFECTS with the same event and the same effect, by a name."""
    named: dict[str, list[Any]] = {}
    for key, effect in EFFECTS.items():
        alike = [one for one in EFFECTS if one[1] is key[1] and _cells(EFFECTS[one]) == _cells(effect)]
        named[f"{key[1]} from {', '.join(state for state, _ in alike)}"] = alike
    return named


def _cells(effect: Effect) -> Effect:
    """What an event does, wherever it leads."""
    return replace(effect, next=None, through=None)


def mutations() -> Iterator[Mutation]:
    for name, keys in rows().items():
        effect = EFFECTS[keys[0]]
        for column in COLUMNS:
            if getattr(effect, column) is not None:
                yield from ((name, column, what) for what in ("dropped", "doubled", "swapped"))
    for event, cells in utxo.TABLE.items():
        for state, cell in cells.items():
            where = f"utxo {event} from {state or 'unknown'}"
            if cell.to is not state:
                yield where, "to", "swapped"
            if cell.books is not Books.NOTHING:
                yield where, "books", "dropped"
            if cell.free is not FreeSet.KEEP:
                yield where, "free", "dropped"


def switch_on(stack: ExitStack, mutation: Mutation) -> None:
    name, column, what = mutation
    without_guards(stack)
    if name.startswith("utxo "):
        _of_a_utxo(stack, name, column)
        return
    for key in rows()[name]:
        effect = EFFECTS[key]
        if what == "doubled":
            continue
        value = getattr(effect, column)
        values = list(type(value))
        other = None if what == "dropped" else values[values.index(value) - 1]
        put_in(stack, EFFECTS, key, replace(effect, **{column: other}))
    if what == "doubled":
        _doubled(stack, set(rows()[name]), column)


def _doubled(stack: ExitStack, keys: set[Any], column: str) -> None:
    """The column's changes are made twice."""
    real = columns.apply

    def apply(payment: Any, event: Any) -> Changes:
        changes = real(payment, event)
        key = payment.row.state, event.event
        if key not in keys:
            return changes
        effect: Effect = EFFECTS[key]
        return (*changes, *columns._CELLS[getattr(effect, column)](payment, event))

    for module in [one for one in list(sys.modules.values()) if getattr(one, "apply", None) is real]:
        put(stack, module, "apply", apply)


def _of_a_utxo(stack: ExitStack, name: str, column: str) -> None:
    event, _, state = name.removeprefix("utxo ").partition(" from ")
    cells = utxo.TABLE[utxo.UtxoEvent(event)]
    before = None if state == "unknown" else UtxoState(state)
    cell = cells[before]
    wrong = {
        "to": UtxoMove(_other(cell.to), cell.books, cell.free),
        "books": UtxoMove(cell.to, Books.NOTHING, cell.free),
        "free": UtxoMove(cell.to, cell.books, FreeSet.KEEP),
    }[column]
    put_in(stack, cells, before, wrong)


def _other(state: UtxoState | None) -> UtxoState:
    """Another state, which the table's constraints allow."""
    return UtxoState.LOCKED if state in (UtxoState.AVAILABLE, UtxoState.PENDING) else UtxoState.AVAILABLE


def kill(mutation: Mutation, seeds: range) -> tuple[int, str] | None:
    """The seed that finds it and what it says, or None when every seed lets it live."""
    stage = SimStage()
    try:
        with ExitStack() as stack:
            switch_on(stack, mutation)
            for seed in seeds:
                if violations := stage.run(seed).violations:
                    return seed, violations[0]
    finally:
        stage.close()
    return None


if __name__ == "__main__":
    first, _, last = sys.argv[2].partition("..")
    chosen = [one for one in mutations() if sys.argv[1] in ("all", one[0])]
    with ProcessPoolExecutor(len(sched_getaffinity(0)), get_context("spawn")) as pool:
        found = pool.map(partial(kill, seeds=range(int(first), int(last))), chosen)
        for mutation, seen in zip(chosen, found, strict=True):
            print(f"{' / '.join(mutation)}: {'LIVES' if seen is None else seen}", flush=True)
