"""What a client of payagent is told when a call could not be paid for or was not served.

May import: httpx, core. Never: holds a token.
"""

from collections.abc import Mapping

import httpx

from payagent.core.problems import PROBLEMS


class PayAgentError(httpx.RequestError):
    """The call was not carried out, for a reason that is about paying.

    `code` is stable (docs/problems.md), `detail` says what happened, `money` what that means for the money and
    `fix` what to do; `retryable` that the same call may do later. `payment` is the payment's id, if there
    is one. `problem` has everything that the daemon said.
    """

    def __init__(self, problem: Mapping[str, object]) -> None:
        self.problem = dict(problem)
        self.code = str(problem.get("code", "internal_error"))
        self.detail = str(problem.get("detail", ""))
        self.money = str(problem.get("money", ""))
        self.fix = str(problem.get("fix", ""))
        self.retryable = problem.get("retryable") is True
        self.payment = None if problem.get("payment") is None else str(problem["payment"])
        super().__init__(
            " ".join(part for part in (f"{self.code}: {self.detail.rstrip('.')}.", self.money, self.fix) if part)
        )

    def __reduce__(self) -> tuple[type["PayAgentError"], tuple[dict[str, object]]]:
        """An exception is made anew from its message, as it is handed to another process; this one has more."""
        return type(self), (self.problem,)


def own_error(code: str, detail: str, **context: object) -> PayAgentError:
    """An error that this side found, in the words of the table of problems."""
    row = PROBLEMS[code]
    told = {"code": code, "title": row.title, "detail": detail, "status": row.status}
    return PayAgentError({**told, "money": row.money, "fix": row.fix, "retryable": row.retryable} | dict(context))
