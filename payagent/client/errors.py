"""Errors for a client whose request could not be paid or was not served.

Never: holds a token.
"""

from collections.abc import Mapping

import httpx

from payagent.core.problems import Refused, name_of


class PayAgentError(httpx.RequestError):
    """A request failed for a reason that has to do with paying.

    `code` and `reason` are stable (problems.md). `detail` says what happened, `money` what it means for the
    money, and `fix` what to do. `retryable` says that the same request may work later. `payment` is the payment's
    id, if there is one. `problem` holds everything that the daemon said.
    """

    def __init__(self, problem: Mapping[str, object]) -> None:
        self.problem = dict(problem)
        self.code = str(problem.get("code", "internal_error"))
        self.reason = None if problem.get("reason") is None else str(problem["reason"])
        self.detail = str(problem.get("detail", ""))
        self.money = str(problem.get("money", ""))
        self.fix = str(problem.get("fix", ""))
        self.retryable = problem.get("retryable") is True
        self.payment = None if problem.get("payment") is None else str(problem["payment"])
        happened = f"{name_of(self.code, self.reason)}: {self.detail.rstrip('.')}."
        super().__init__(" ".join(part for part in (happened, self.money, self.fix) if part))

    def __reduce__(self) -> tuple[type["PayAgentError"], tuple[dict[str, object]]]:
        """Pickle with the problem: an exception is otherwise rebuilt from its message alone in another process."""
        return type(self), (self.problem,)


def own_error(name: str, detail: str, **context: object) -> PayAgentError:
    """Build an error found on this side, with the texts of the problem table."""
    refused = Refused(name, detail)
    row = refused.problem
    record = {**refused.record, "title": row.title, "status": row.status}
    return PayAgentError({**record, "money": row.money, "fix": row.fix, "retryable": row.retryable} | context)
