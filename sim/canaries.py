"""Canaries: what must never be written down, in every form that it might take.

May import: the standard library. Never: keeps a text that it searched.
"""

import base64


class Canaries:
    """Names of secrets by the bytes that would give them away: texts as they are, keys in hex and base64 too."""

    def __init__(self, texts: dict[str, str], keys: dict[str, bytes]) -> None:
        self._forms = [(name, text.encode()) for name, text in texts.items()] + [
            (name, form)
            for name, key in keys.items()
            for form in (key, key.hex().encode(), base64.b64encode(key)[:-4])
        ]

    def found_in(self, data: bytes) -> str | None:
        """The name of the first secret that is there."""
        for name, form in self._forms:
            if form in data:
                return name
        return None
