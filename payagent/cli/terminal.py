"""Terminal output: data on stdout, messages on stderr; tables for people, JSON for programs.

A `Terminal` has the three streams and knows whether a program reads stdout (no terminal, or --json).

Never: prints a secret that it was not asked to show.
"""

import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from textwrap import fill
from typing import Any, Literal, TextIO, cast

import click

from payagent.cli.table_fit import GAP, Column, fit
from payagent.core.money import NO_TOKENS, THOUSANDS, Tokens, for_people
from payagent.core.problems import PROBLEMS, Refused, name_of

Json = dict[str, object]
Tone = Literal["ok", "warning", "error"]

PROGRESS_EVERY_S = 0.5
_KEPT = f"\n\t{THOUSANDS}"
COLOURS: Mapping[Tone, str] = {"ok": "green", "warning": "yellow", "error": "red"}


@dataclass(frozen=True, slots=True)
class Field:
    """A column of a table. `shows` is a key of a row, by default the name, or makes the cell of a row."""

    name: str
    shows: str | Callable[[Any], object] = ""
    is_right: bool = False  # right-aligned, never shortened
    is_whole: bool = False  # never shortened
    drop: int | None = None  # left out if empty, or if the width does not suffice, the lowest first
    tone: Callable[[str], Tone | None] | None = None

    def text(self, row: Any) -> str:
        cell = self.shows(row) if callable(self.shows) else row[self.shows or self.name]
        return "" if cell is None else str(cell)


class ProblemError(Exception):
    """The daemon answered with a problem (RFC 9457)."""

    def __init__(self, problem: Json) -> None:
        super().__init__(str(problem.get("code")))
        self.problem = problem


@dataclass(slots=True)
class Terminal:
    """The three streams. `forced_json` is True for --json and False for --human. `tokens`: those of the config."""

    stdin: TextIO
    stdout: TextIO
    stderr: TextIO
    forced_json: bool | None = None
    tokens: Callable[[], Tokens] = field(default=lambda: NO_TOKENS)
    _progress_at_s: float = field(default=0.0)

    @property
    def is_json(self) -> bool:
        """Whether a program reads data and errors."""
        return not self.stdout.isatty() if self.forced_json is None else self.forced_json

    @property
    def is_one_screen(self) -> bool:
        """Whether data and messages are on the same terminal."""
        return self.stdout.isatty() and self.stderr.isatty()

    @property
    def can_ask(self) -> bool:
        """Whether a person can be asked, and shown a secret."""
        return self.forced_json is not True and self.stdin.isatty() and self.stderr.isatty()

    def give(self, data: object, human: Callable[[], None]) -> None:
        """Write data to stdout, as JSON or with `human`."""
        if self.is_json:
            self.line(json.dumps(data, indent=2 if self.stdout.isatty() else None))
        else:
            human()

    def line(self, text: str = "", hang: str | None = None) -> None:
        """Write one line of data. With `hang`, which the rest begins with, a terminal breaks it between words."""
        self.write(self._fitted(text, self.stdout, hang) + "\n")

    def write(self, text: str) -> None:
        """Write data unchanged. Write errors, such as a full disk, are `write_failed/answer`.

        `BrokenPipeError` is passed on.
        """
        try:
            self.stdout.write(text)
            self.stdout.flush()
        except BrokenPipeError:
            raise
        except OSError as error:
            # discard the rest: Python would try to write it once more when it ends
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.stdout.fileno())
            raise Refused("write_failed/answer", error.strerror or type(error).__name__) from None

    def say(self, text: str, hang: str = "") -> None:
        """Write one message to stderr, broken as by `line`."""
        print(self._fitted(text, self.stderr, hang), file=self.stderr, flush=True)

    def say_error(self, text: str) -> None:
        """Write the first line of an error to stderr."""
        shown = self._fitted(f"error: {text}", self.stderr, "  ").removeprefix("error:")
        print(self._painted("error:", "error", self.stderr) + shown, file=self.stderr, flush=True)

    def _fitted(self, text: str, stream: TextIO, hang: str | None) -> str:
        """The text as it is shown. On a terminal, long lines break between words, but not indented commands."""
        shown = self._shown(text, stream)
        if hang is None or self.is_json or not stream.isatty():
            return shown
        lines, width = shown.split("\n"), shutil.get_terminal_size().columns
        return "\n".join(
            line
            if len(line) <= width or (line.startswith("  ") and (at or not hang))
            else fill(line, width, subsequent_indent=hang, break_long_words=False, break_on_hyphens=False)
            for at, line in enumerate(lines)
        )

    def table(self, rows: Sequence[Any], fields: Sequence[Field]) -> None:
        """Write a table to stdout. On a terminal it is fitted to its width."""
        if not rows:
            self.line("(none)")
            return
        table = [
            Column(
                one.name,
                [self._shown(one.text(row), self.stdout) for row in rows],
                one.is_right or one.is_whole,
                one.drop,
            )
            for one in fields
        ]
        table = [column for column in table if column.rank is None or any(column.cells)]
        if self.stdout.isatty():
            table = fit(table, shutil.get_terminal_size().columns)
        named = {one.name: one for one in fields}
        columns = [(named[column.name], column.width) for column in table]

        def line(cells: Sequence[str], *, is_head: bool = False) -> str:
            texts = [
                self._painted(
                    cell.rjust(width) if one.is_right else cell.ljust(width),
                    None if is_head or one.tone is None else one.tone(cell),
                    self.stdout,
                )
                for cell, (one, width) in zip(cells, columns, strict=True)
            ]
            return (" " * GAP).join(texts).rstrip()

        lines = [line(cells) for cells in zip(*(column.cells for column in table), strict=True)]
        rule = "─" * (sum(column.width for column in table) + GAP * (len(table) - 1))
        self.write("\n".join([line([column.name for column in table], is_head=True), rule, *lines]) + "\n")

    def give_list(self, answer: Mapping[str, Any], name: str, fields: Sequence[Field]) -> None:
        """Give an answer; for people the table of its list of that name, and how to see the next page."""

        def human() -> None:
            self.table(answer[name], fields)
            self.say_more(answer)

        self.give(answer, human)

    def say_more(self, answer: Mapping[str, Any]) -> None:
        """Say how to see the next page, if there is one."""
        if cursor := answer.get("cursor") or answer.get("next"):
            self.say(f"More: --cursor {cursor}")

    def marked(self, mark: str, tone: Tone, text: str, hang: str = "    ") -> None:
        """Write a line of data that begins with a word in the colour of its tone."""
        shown = self._fitted(mark + text, self.stdout, hang)
        self.write(f"{self._painted(mark, tone, self.stdout)}{shown[len(mark) :]}\n")

    def _painted(self, text: str, tone: Tone | None, stream: TextIO) -> str:
        """The text in its colour if the stream is a terminal, unless $NO_COLOR is set (no-color.org)."""
        if tone is None or os.environ.get("NO_COLOR") or not stream.isatty():
            return text
        return click.style(text, fg=COLOURS[tone])

    def give_pairs(self, data: Json, labels: Mapping[str, str] = {}) -> None:
        """Give an object; for people its members one per line, under their labels."""
        self.give(data, lambda: self.pairs([(labels.get(name, name), str(value)) for name, value in data.items()]))

    def facts(self, facts: Iterable[tuple[str, object]]) -> None:
        """Write the names and values of the facts that are known, one per line."""
        self.pairs([(name, str(value)) for name, value in facts if value])

    def _shown(self, text: str, stream: TextIO) -> str:
        """The text as it is written: without control characters, and for people with readable amounts."""
        if self.is_json:
            return harmless(text)
        text = for_people(text, self.tokens() if " units of " in text else NO_TOKENS)
        encoding = getattr(stream, "encoding", None) or "utf-8"
        return harmless(text if "utf" in encoding.lower() else text.replace(THOUSANDS, ""))

    def pairs(self, pairs: Sequence[tuple[str, str]]) -> None:
        """Write names and values, one per line."""
        width = max((len(name) for name, _ in pairs), default=0)
        for name, value in pairs:
            self.line(f"{name.ljust(width)}  {value}", " " * (width + 2) if " " in value else None)

    @contextmanager
    def waiting(self) -> Iterator[Callable[[str], None]]:
        """Show progress in one line that is rewritten and finally erased. Silent if stderr is no terminal."""
        width = 0

        def show(text: str) -> None:
            nonlocal width
            now_s = time.monotonic()
            if self.stderr.isatty() and now_s - self._progress_at_s >= PROGRESS_EVERY_S:
                self._progress_at_s = now_s
                self.stderr.write("\r" + text.ljust(width))
                self.stderr.flush()
                width = max(width, len(text))

        try:
            yield show
        finally:
            if width:
                self.stderr.write("\r" + " " * width + "\r")
                self.stderr.flush()

    def complain(self, problem: Json) -> int:
        """One error: what happened, what it means for the money, what to do next. Returns its exit code."""
        exit_code = int(str(problem["exit_code"]))
        if self.is_json:
            self.say(json.dumps(problem))
            return exit_code
        name = name_of(str(problem["code"]), cast(str | None, problem.get("reason")))
        self.say_error(f"{problem['title']} ({name})")
        for line in str(problem["detail"]).splitlines():
            self.say(f"  {line}", "  ")
        for name, key in (("money", "money"), ("next", "fix")):
            if problem.get(key):
                self.say(f"  {name}: {problem[key]}", "  ")
        return exit_code


def harmless(text: str) -> str:
    """Escape unprintable characters, so that untrusted text cannot control the terminal."""
    return "".join(char if char.isprintable() or char in _KEPT else ascii(char)[1:-1] for char in text)


def standard_terminal() -> Terminal:
    """The process's own streams. A closed one (`>&-`) becomes /dev/null."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            # this takes the stream's own number, so that no other file gets it later
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), mode))
    return Terminal(sys.stdin, sys.stdout, sys.stderr)


def describe(refused: Refused) -> Json:
    """A refusal as the object that programs read. `exit_code` is the command's."""
    row = refused.problem
    context: Mapping[str, object] = refused.context
    return {
        **context,
        **refused.record,
        "title": row.title,
        "money": row.money,
        "fix": row.fix,
        "retryable": row.retryable,
        "exit_code": row.exit_code,
    }


def as_shown(problem: Mapping[str, object]) -> Json:
    """A problem (RFC 9457) of the daemon as the object that `describe` makes. An unknown code exits with 1."""
    code, reason = str(problem.get("code", "internal_error")), problem.get("reason")
    row = PROBLEMS.get(code)
    if row is not None and reason in row.reasons:
        row = row.of(str(reason))
    texts: Json = {"title": "Refused by payagent", "exit_code": 1}
    if row is not None:
        texts = {"title": row.title, "money": row.money, "fix": row.fix, "exit_code": row.exit_code}
    fields = {name: value for name, value in problem.items() if name not in ("type", "status", "error")}
    return {"code": code, "detail": ""} | texts | fields
