"""Run the commands of a page as they stand, on other ports and in other folders."""

import os
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

from kit.cli import clean_environ
from kit.http import free_port

TIMEOUT_S = 180
ACTIVATE = ". .venv/bin/activate"


def walked(
    walk: Iterable[str],
    here: Mapping[str, str],
    environ: Mapping[str, str] | None = None,
    *,
    cwd: Path | None = None,
    stdin: str = "",
) -> str:
    """What the blocks of a page print. `here` replaces what the page says; a name ":8402" gets a free port for "".

    The first command that fails ends the walk, and so does the test. What runs in the background is ended.
    """
    script = "set -e\ntrap 'kill $(jobs -p) || true; wait' EXIT\n" + "".join(walk)
    for said, instead in here.items():
        assert said in script, said
        script = script.replace(said, instead or f":{free_port()}")
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    result = subprocess.run(
        ["bash", "-c", script],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
        cwd=cwd,
        env=clean_environ() | {"PATH": path} | dict(environ or {}),
    )
    assert result.returncode == 0, result.stderr + result.stdout[-2000:]
    return result.stdout
