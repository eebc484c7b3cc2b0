"""The page of a run, its plots as SVG and its JSON. Nothing on it is remembered from another run.

May import: matplotlib, which only who draws needs. Never: measures.
"""

import json
import os
import platform
import re
import sqlite3
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from itertools import cycle
from pathlib import Path
from typing import Any

Json = dict[str, Any]

ROOT = Path(__file__).resolve().parent.parent
NAME = "bench"
_PACKAGES = (
    "pycardano",
    "cbor2",
    "pynacl",
    "httpx",
    "fastapi",
    "starlette",
    "uvicorn",
    "h11",
    "blockfrost-python",
)

_MARKERS, _HATCHES = "os^vDPX*<>", ("", "//", "||", "xx", "\\\\", "--", "++")
"""So that nobody needs colours to tell a plot's lines and pieces apart."""
_LEGEND: Json = {"loc": "outside lower center", "ncols": 3, "frameon": False}
"""Beside what is drawn, and covers none of it."""


def about_the_run() -> Json:
    """Commit, machine and versions."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "commit": git("rev-parse", "HEAD") or "unknown",
        "is_clean": git("status", "--porcelain") == "",
        "processors": len(os.sched_getaffinity(0)),
        "cpu": names[0] if names else platform.processor() or "unknown",
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
        "packages": {name: _version(name) for name in _PACKAGES},
    }


def as_summary(told: Json) -> str:
    """For a terminal: the ratios, then the bounds."""
    lines = ["How many times more another one takes:"]
    lines += [f"  {_figure(one['times']):>9}x  {one['other']}: {one['name']}" for one in _all(told, "ratios")]
    lines += ["", "What must hold:"]
    for bound in _all(told, "bounds"):
        lines.append(f"  {_verdict(bound):<4} {bound['name']}: {_figure(bound['seen'])} {_most(bound)}")
    return "\n".join(lines)


def write(told: Json, folder: Path) -> list[Path]:
    """Page, plots and JSON; the files that were written."""
    folder.mkdir(parents=True, exist_ok=True)
    data, page = folder / f"{NAME}.json", folder / f"{NAME}.md"
    data.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    page.write_text(as_page(told), encoding="utf-8")
    drawn = [_draw(plot, folder) for part in told["parts"] for plot in part["plots"]]
    drawn += [_stack(bars, folder) for part in told["parts"] for bars in part["bars"]]
    return [data, page, *drawn]


def as_page(told: Json) -> str:
    run = told["run"]
    packages = ", ".join(f"{name} {number}" for name, number in run["packages"].items())
    state = "" if run["is_clean"] else " and changes"
    titles = [
        "How many times more another one takes",
        "What must hold",
        *(part["title"] for part in told["parts"]),
    ]
    out = [
        "# What things cost",
        "",
        f"Written by `scripts/bench{' --quick' if told['quick'] else ''}`; the same for programs is in "
        f"[{NAME}.json]({NAME}.json). Times are of this machine; the ratios are what counts.",
        "",
        f"Commit {run['commit']}{state}. {run['processors']} processors ({run['cpu']}), {run['system']}, Python "
        f"{run['python']}, SQLite {run['sqlite']}; {packages}.",
        "",
        *(f"- [{title}](#{re.sub(r'[^a-z0-9 -]', '', title.lower()).replace(' ', '-')})" for title in titles),
        "",
        "## How many times more another one takes",
        "",
        *_table(("work", "by", "times"), [(r["name"], r["other"], r["times"]) for r in _all(told, "ratios")]),
        "",
        "## What must hold",
        "",
        *_table(
            ("", "what", "seen", "must be"),
            [(_verdict(b), b["name"], b["seen"], _most(b)) for b in _all(told, "bounds")],
        ),
    ]
    for part in told["parts"]:
        out += ["", f"## {part['title']}", "", part["how"].strip(), "", f"It took {part['took_s']:.0f} s."]
        for plot in (*part["bars"], *part["plots"]):
            out += ["", f"![{plot['title']}]({_file(plot)})"]
        for table in part["tables"]:
            out += ["", f"### {table['title']}", "", *_table(table["columns"], table["rows"])]
        if part["left_out"]:
            out += ["", f"What this does not show: {part['left_out'].strip()}"]
    return "\n".join(out) + "\n"


def _table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    return lines + ["| " + " | ".join(_figure(cell) for cell in row) + " |" for row in rows]


def _figure(cell: object) -> str:
    """Three digits that count; None is nothing."""
    if cell is None:
        return ""
    if not isinstance(cell, float):
        return f"{cell:,}" if isinstance(cell, int) else str(cell)
    return f"{cell:,.0f}" if abs(cell) >= 100 else f"{cell:.3g}"


def _verdict(bound: Mapping[str, Any]) -> str:
    return "ok" if bound["holds"] else "NOT"


def _most(bound: Mapping[str, Any]) -> str:
    sense = "at least" if bound["at_least"] else "at most"
    return f"({sense} {_figure(bound['bound'])} {bound['unit']})"


def _all(told: Json, kind: str) -> list[Json]:
    return [one for part in told["parts"] for one in part[kind]]


def _file(plot: Json) -> str:
    return f"{NAME}-{plot['name']}.svg"


def _draw(plot: Json, folder: Path) -> Path:
    """The same data give the same bytes: no date, and ids that do not change."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context({"svg.hashsalt": plot["name"], "svg.fonttype": "none", "font.size": 9}):
        figure = Figure(figsize=(7, 4), layout="constrained")
        axes = figure.add_subplot()
        for (name, points), marker in zip(plot["lines"].items(), cycle(_MARKERS)):
            ours = name.startswith("payagent")
            axes.plot(
                [x for x, _ in points], [y for _, y in points], label=name, marker=marker, markersize=5,
                linewidth=2.5 if ours else 1.2,
            )  # fmt: skip
        axes.set(title=plot["title"], xlabel=plot["x"], ylabel=plot["y"])
        axes.set_xscale("log" if plot["log_x"] else "linear")
        axes.set_yscale("log" if plot["log_y"] else "linear")
        axes.grid(True, which="major", alpha=0.3)
        if len(plot["lines"]) > 1:
            figure.legend(**_LEGEND)
        path = folder / _file(plot)
        figure.savefig(path, metadata={"Date": None})
    return path


def _stack(told: Json, folder: Path) -> Path:
    """Bars that lie, the pieces of each in their order."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context({"svg.hashsalt": told["name"], "svg.fonttype": "none", "font.size": 9}):
        figure = Figure(figsize=(8, 1.6 + 0.7 * len(told["bars"])), layout="constrained")
        axes = figure.add_subplot()
        pieces = list(dict.fromkeys(name for bar in told["bars"].values() for name in bar))
        left = dict.fromkeys(told["bars"], 0.0)
        for name, hatch in zip(pieces, cycle(_HATCHES)):
            widths = [bar.get(name, 0.0) for bar in told["bars"].values()]
            axes.barh(list(told["bars"]), widths, left=list(left.values()), label=name, hatch=hatch)
            left = {bar: start + width for (bar, start), width in zip(left.items(), widths, strict=True)}
        axes.invert_yaxis()
        axes.set(title=told["title"], xlabel=told["unit"])
        figure.legend(**_LEGEND)
        path = folder / _file(told)
        figure.savefig(path, metadata={"Date": None})
    return path


def git(*arguments: str) -> str | None:
    """The output of a git command in this tree; None if it failed."""
    done = subprocess.run(("git", *arguments), cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else None


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "missing"
