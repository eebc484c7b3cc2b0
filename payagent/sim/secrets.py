"""Canaries: what must never be written down, in every form that it might take.

May import: the standard library. Never: keeps a text that it searched.
"""

import base64


class Canaries:
    """Names of secrets by the bytes that would give them away."""

    def __init__(self, secrets: dict[str, bytes]) -> None:
        self._forms = [
            (name, form)
            for name, secret in secrets.items()
            for form in (secret, secret.hex().encode(), base64.b64encode(secret)[:-4])
        ]

    def found_in(self, data: bytes) -> str | None:
        """The name of the first secret that is there."""
        return next((name for name, form in self._forms if form in data), None)
