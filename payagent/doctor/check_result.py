"""The result of one check.

May import: core.
"""

from collections.abc import Callable
from dataclasses import dataclass

from payagent.core.problems import Refused


@dataclass(frozen=True, slots=True)
class CheckResult:
    """The result of one check. `problem` is None when it passed; `detail` says what was found.

    `is_warning`: the daemon works as it is, but could be safer.
    """

    name: str
    detail: str
    problem: Refused | None = None
    is_warning: bool = False

    @property
    def fix(self) -> str | None:
        """What to do; None when the check passed."""
        return None if self.problem is None else self.problem.problem.fix


def finding(name: str, check: Callable[[], str]) -> CheckResult:
    """Run a check. A refusal that it raises becomes the result."""
    try:
        return CheckResult(name, check())
    except Refused as refused:
        return CheckResult(name, refused.detail, refused)
