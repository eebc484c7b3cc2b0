"""scripts/audit: a vulnerability database that does not answer never counts as clean."""

import json
import runpy
from pathlib import Path

import pytest

JUDGE = runpy.run_path(str(Path(__file__).parents[2] / "scripts/audit"))["judge"]
CLEAN = {"name": "click", "version": "8.5.1", "vulns": []}
FLAWED = {"name": "h11", "version": "0.1", "vulns": [{"id": "PYSEC-1", "fix_versions": []}]}
SILENT = {"name": "rich", "skip_reason": "not found"}


@pytest.mark.parametrize(
    ("packages", "status", "told"),
    [
        ([CLEAN], 0, "nothing is known of any of the 1"),
        ([CLEAN, FLAWED, SILENT], 1, "h11 PYSEC-1"),
        ([CLEAN, SILENT], 3, "NOT RUN: no database answered for 1 of 2"),
        ([], 3, "NOT RUN"),
    ],
)
def test_the_audit_reports_clean_flawed_and_unanswered_packages(
    packages: list[object], status: int, told: str
) -> None:
    found = JUDGE(json.dumps({"dependencies": packages, "fixes": []}))
    assert found[0] == status
    assert told in found[1]


def test_an_audit_without_an_answer_counts_as_not_run() -> None:
    assert JUDGE("")[0] == 3
    assert JUDGE("\n")[1].startswith("NOT RUN")
