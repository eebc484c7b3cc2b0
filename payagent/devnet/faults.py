"""Faults of the devnet's Blockfrost API: the table of kinds, and the switches that turn them on.

Start at `KINDS` and `read_fault`. A fault has two independent parts: what happens to a submitted transaction
(`accept`: now, later, never) and how the answer looks (`answer`). The kinds are combinations seen in practice
(exactly-once.md). `accept` can be overridden, for example for a 500 after acceptance.

Pure, so the same switches serve HTTP and the simulator.

Never: does I/O; uses a clock or randomness.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Annotated, Final, Literal, Self

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass as settings

from payagent.devnet.settings import STRICT, made

SUBMIT, READS = "submit", "reads"
NOW: Final = "now"
LATER: Final = "later"
NEVER: Final = "never"
SUBMIT_PATH = "/tx/submit"


@dataclass(frozen=True, slots=True)
class FaultKind:
    """One kind: the calls it applies to, what happens to a submitted transaction, and the form of the answer."""

    faces: tuple[str, ...]
    accept: Literal["now", "later", "never"]
    answer: str


_BOTH = (SUBMIT, READS)
KINDS: dict[str, FaultKind] = {
    "lost_reply": FaultKind(_BOTH, NOW, "abort"),
    "late_accept": FaultKind((SUBMIT,), LATER, "gateway_timeout"),
    "full": FaultKind((SUBMIT,), NEVER, "full"),
    "rate": FaultKind(_BOTH, NEVER, "rate"),
    "quota": FaultKind(_BOTH, NEVER, "quota"),
    "banned": FaultKind(_BOTH, NEVER, "banned"),
    "server": FaultKind(_BOTH, NEVER, "server"),
    "html": FaultKind(_BOTH, NEVER, "html"),
    "truncated": FaultKind(_BOTH, NOW, "truncated"),
    "oversized": FaultKind(_BOTH, NOW, "oversized"),
    "lying_ok": FaultKind((SUBMIT,), NEVER, "other_hash"),
    "drop": FaultKind((SUBMIT,), NEVER, "honest"),
    "hang": FaultKind(_BOTH, NEVER, "hang"),
    "stale_index": FaultKind((READS,), NEVER, "stale"),
    "not_found": FaultKind((READS,), NEVER, "not_found"),
    "no_optional": FaultKind((READS,), NEVER, "no_optional"),
}
"""`stale_index` shows the UTxOs of some blocks ago, `not_found` denies what exists, and `no_optional` leaves out
the members in `OPTIONAL`.
"""

OPTIONAL = frozenset({"reference", "consumed_by_tx", "cost_models_raw", "redeemers"})
"""Members of the devnet's answers that Blockfrost's OpenAPI document does not require."""

ERRORS: dict[str, tuple[int, str, str]] = {
    "gateway_timeout": (504, "Gateway Timeout", "The upstream server did not answer in time."),
    "full": (425, "Mempool Full", "Mempool is full, please try resubmitting again later."),
    "rate": (429, "Project Over Limit", "Usage is over limit."),
    "quota": (402, "Project Over Limit", "Usage is over limit."),
    "banned": (418, "Requested Banned", "IP has been auto-banned for flooding."),
    "server": (500, "Internal Server Error", "An unexpected response was received from the backend."),
    "not_found": (404, "Not Found", "The requested component has not been found."),
}
"""Answers with a Blockfrost error body: (status, error, message)."""

_Small = Annotated[int, Field(ge=1, le=1_000_000)]


@settings(slots=True, config=STRICT)
class Fault:
    """One active fault. `left` counts down to 0; None means until cleared. `blocks` is how late or how stale."""

    on: str
    kind: str
    accept: Literal["now", "later", "never", ""] = ""  # empty: as is usual for the kind
    blocks: _Small = 1
    left: _Small | None = None

    @model_validator(mode="after")
    def _is_possible(self) -> Self:
        if self.kind not in KINDS:
            raise ValueError(f"kind must be one of {', '.join(KINDS)}")
        faces = KINDS[self.kind].faces
        if not self.on.startswith("/") and self.on not in faces:
            raise ValueError(f"on must be a path prefix or one of {', '.join(faces)} for {self.kind}")
        self.accept = self.accept or KINDS[self.kind].accept
        return self

    @property
    def answer(self) -> str:
        return KINDS[self.kind].answer

    def meets(self, face: str, path: str) -> bool:
        """Whether the fault applies to this call. A stale index affects only UTxO lists."""
        if self.left == 0 or face not in KINDS[self.kind].faces:
            return False
        if self.answer == "stale" and not path.startswith(("/addresses/", "/address_utxos", "/matches/")):
            return False
        return self.on == face or (self.on.startswith("/") and path.startswith(self.on))


def read_fault(body: Mapping[str, object]) -> Fault:
    """Read a fault: {"on": "submit" | "reads" | a path prefix, "kind", "count"?, "accept"?, "blocks"?}.

    `count` null or absent means until cleared. `blocks` (default 1) is for `late_accept` and `stale_index`. Raises
    `BadSettings`.
    """
    return made(Fault, {"left" if name == "count" else name: value for name, value in body.items()})


class Switches:
    """The active faults in the order they were set, and how often each kind was triggered."""

    def __init__(self) -> None:
        self._faults: list[Fault] = []
        self.triggered: Counter[str] = Counter()

    def add(self, fault: Fault) -> None:
        self._faults.append(fault)

    def clear(self) -> None:
        """Switch all faults off. The trigger counts stay."""
        self._faults.clear()

    def take(self, method: str, path: str) -> Fault | None:
        """The fault that applies to this call, counted as triggered. `path` is relative to the API's root."""
        face = SUBMIT if (method, path) == ("POST", SUBMIT_PATH) else READS
        for fault in self._faults:
            if fault.meets(face, path):
                self.triggered[f"{face}:{fault.kind}"] += 1
                if fault.left is not None:
                    fault.left -= 1
                return fault
        return None

    def as_json(self) -> dict[str, object]:
        return {
            "active": [asdict(fault) for fault in self._faults if fault.left != 0],
            "triggered": dict(sorted(self.triggered.items())),
        }
