"""What was seen of one thing that was looked at.

May import: core.
"""

from collections.abc import Callable
from dataclasses import dataclass

from payagent.core.problems import Refused


@dataclass(frozen=True, slots=True)
class CheckResult:
    """One thing that was looked at. `problem` is None when it is well; `detail` says what was seen.

    `is_warning`: the daemon works as it is, and more could be had.
    """

    name: str
    detail: str
    problem: Refused | None = None
    is_warning: bool = False

    @property
    def fix(self) -> str | None:
        """What to do; None when it is well."""
        return None if self.problem is None else self.problem.problem.fix


def finding(name: str, look: Callable[[], str]) -> CheckResult:
    """What `look` saw, or the refusal that it ended in."""
    try:
        return CheckResult(name, look())
    except Refused as refused:
        return CheckResult(name, refused.detail, refused)
