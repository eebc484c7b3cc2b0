"""The answers of the signer and of the token process: a signature, or a refusal in JSON.

Never: an error beyond its refusal.
"""

import json

from payagent.core.problems import Refused

MESSAGE_BYTES_MAX = 65_536
SIGNED, REFUSED = b"\0", b"\1"
CHANNEL = 255
"""In place of an account's number: a request of `channels`."""


def packed(refused: Refused) -> bytes:
    """A refusal as a message."""
    told = {"name": refused.name, "detail": refused.detail, "fix": refused.problem.fix, "context": refused.context}
    return json.dumps(told).encode()


def unpacked(message: bytes) -> Refused:
    """The refusal of a message."""
    fields = json.loads(message)
    return Refused(fields["name"], fields["detail"], fix=fields["fix"], **fields["context"])


def signature_of(answer: bytes) -> bytes:
    """The signature in an answer. Raises the refusal, if it is one."""
    if answer[:1] != SIGNED:
        raise unpacked(answer[1:])
    return answer[1:]
