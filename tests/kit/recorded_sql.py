"""Records the statements that the store runs on SQLite, so that they can be tried on PostgreSQL.

`ask_everything` calls each function of the store with made-up values: once with as few as it takes, once with all.
"""

import ast
import enum
import importlib
import inspect
import pkgutil
import sqlite3
import sys
import types
import typing
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import payagent.store
import payagent.store.audit
import payagent.store.rows
from payagent.core.problems import Refused
from payagent.store.db import sql as reads
from payagent.store.db.unit import Unit

ASKING = ("execute", "executemany", "find_each", "find_all", "find_one", "number", "exists")
"""The calls that run a statement."""

STORE = Path(payagent.store.__file__).parent

OF_THE_FILE = tuple(STORE / "db" / f"{name}.py" for name in ("opening", "readers", "schema", "seals"))
"""The modules for SQLite alone."""

_TYPES = {bool: "boolean", int: "bigint", bytes: "bytea"}


class Recorded:
    """`texts`: each with the types of its values, as PostgreSQL is told them. `lines`: (file, line) of calls."""

    def __init__(self) -> None:
        self.texts: dict[tuple[str, tuple[str, ...]], None] = {}
        self.lines: set[tuple[str, int]] = set()

    @contextmanager
    def noting(self, sql: str, *rows: Sequence[object]) -> Iterator[None]:
        """Note a statement of the store that SQLite can read, also when a row breaks a rule."""
        caller = sys._getframe(3)
        while caller.f_code.co_filename == reads.__file__ and caller.f_back is not None:
            caller = caller.f_back
        file, line = Path(caller.f_code.co_filename), caller.f_lineno
        try:
            yield
        except sqlite3.OperationalError:
            raise
        except sqlite3.Error:
            self._note(file, line, sql, rows)
            raise
        else:
            self._note(file, line, sql, rows)

    def _note(self, file: Path, line: int, sql: str, rows: Sequence[Sequence[object]]) -> None:
        self.lines.add((str(file), line))
        if file.is_relative_to(STORE) and file not in OF_THE_FILE:
            for row in rows:
                self.texts[sql, tuple(_TYPES.get(type(value), "unknown") for value in row)] = None

    def missed(self) -> list[str]:
        """The calls in the source that ran nothing, but for those of `store/db`."""
        return [
            f"{file.relative_to(STORE)}:{call.lineno}"
            for file in sorted(STORE.rglob("*.py"))
            if file.parent != STORE / "db" and STORE / "db" not in file.parents
            for call in _calls(file)
            if not any((str(file), line) in self.lines for line in range(call.lineno, (call.end_lineno or 0) + 1))
        ]


def _calls(file: Path) -> Iterator[ast.Call]:
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in ASKING:
            yield node


@contextmanager
def recorded_sql() -> Iterator[Recorded]:
    """What the store runs on the connections that are opened inside."""
    found = Recorded()

    @cache
    def recording(base: type[sqlite3.Connection]) -> type[sqlite3.Connection]:
        class Recording(base):  # type: ignore[misc, valid-type]
            def execute(self, sql: str, values: Any = (), /) -> sqlite3.Cursor:
                with found.noting(sql, values):
                    return super().execute(sql, values)

            def executemany(self, sql: str, rows: Any, /) -> sqlite3.Cursor:
                rows = list(rows)
                with found.noting(sql, *rows):
                    return super().executemany(sql, rows)

        return Recording

    connect = sqlite3.connect

    def connecting(*args: Any, factory: type[sqlite3.Connection] = sqlite3.Connection, **more: Any) -> Any:
        return connect(*args, factory=recording(factory), **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sqlite3, "connect", connecting)
        yield found


def modules() -> Iterator[types.ModuleType]:
    """The store's modules with statements that both engines run."""
    for package in (payagent.store.rows, payagent.store.audit, payagent.store):
        for found in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
            if not found.ispkg:
                yield importlib.import_module(found.name)


def ask_everything(conn: sqlite3.Connection) -> None:
    """Call each function that reads or writes. What it makes of values of no sense is no matter."""
    for module in modules():
        for function, first in _functions(module):
            for examples in (Examples(is_full=False), Examples(is_full=True)):
                conn.execute("BEGIN")
                with suppress(*_NO_SENSE):
                    _call(function, conn if first == "conn" else Unit(conn), examples)
                conn.rollback()


def answers(conn: Any, text: str, number: int) -> dict[str, object]:
    """What each public function that reads answers about these values, by its name: a value or an error's name."""
    told: dict[str, object] = {}
    for module in modules():
        for function, first in _functions(module):
            if first == "conn" and not function.__name__.startswith("_"):
                for is_full in (False, True):
                    name = f"{is_full} {module.__name__}.{function.__name__}"
                    try:
                        told[name] = _call(function, conn, Examples(is_full=is_full, text=text, number=number))
                    except _NO_SENSE as error:
                        told[name] = type(error).__name__
    return told


_NO_SENSE = (Refused, sqlite3.Error, TypeError, ValueError, AttributeError, LookupError)


def _functions(module: types.ModuleType) -> Iterator[tuple[Callable[..., Any], str]]:
    """The functions of a module whose first argument is a connection or a unit, with its name."""
    for function in vars(module).values():
        if inspect.isfunction(function) and function.__module__ == module.__name__:
            first = next(iter(inspect.signature(function).parameters), "")
            if first in ("conn", "unit"):
                yield function, first


def _call(function: Callable[..., Any], first: object, examples: "Examples") -> object:
    hints = typing.get_type_hints(function)
    bound = inspect.signature(function).bind_partial(first)
    others = [*inspect.signature(function).parameters][1:]
    bound.arguments.update({name: examples.of(hints[name]) for name in others})
    result = function(*bound.args, **bound.kwargs)
    return list(result) if isinstance(result, Iterator) else result


@dataclass
class Examples:
    """Values for arguments, by their type; with `is_full` no None and no empty list."""

    is_full: bool
    text: str = "events"
    """May name a table."""
    number: int = 1

    def of(self, hint: Any) -> Any:
        origin, inner = typing.get_origin(hint), typing.get_args(hint)
        if origin in (typing.Union, types.UnionType):
            return self.of(next(one for one in inner if one is not type(None))) if self.is_full else None
        if origin is typing.Literal:
            return inner[0]
        if origin is tuple and ... not in inner:
            return tuple(map(self.of, inner))
        if origin is not None and issubclass(origin, typing.Mapping):
            value = self.of(inner[1])
            return defaultdict(lambda: value, {self.of(inner[0]): value})
        if origin is not None and issubclass(origin, typing.Iterable):
            literals = typing.get_args(inner[0]) if typing.get_origin(inner[0]) is typing.Literal else ()
            values = (literals or (self.of(inner[0]),)) if self.is_full else ()
            return frozenset(values) if issubclass(origin, frozenset) else tuple(values)
        if isinstance(hint, type) and issubclass(hint, enum.Enum):
            return list(hint)[-1]
        if hint in (str, int, bool, bytes, object):
            return {str: self.text, int: self.number, bool: self.is_full, bytes: b"x", object: "x"}[hint]
        hints = typing.get_type_hints(hint)
        return hint(**{name: self.of(hints[name]) for name in inspect.signature(hint).parameters})
