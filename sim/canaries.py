"""Canary secrets: values that must never be written, and a search for them in every encoding.

Never: keeps a text that it searched.
"""

import base64


class Canaries:
    """The secrets by name. Texts are searched as they are, keys as raw bytes, hex and base64."""

    def __init__(self, texts: dict[str, str], keys: dict[str, bytes]) -> None:
        self._forms = [(name, text.encode()) for name, text in texts.items()] + [
            (name, form)
            for name, key in keys.items()
            for form in (key, key.hex().encode(), base64.b64encode(key)[:-4])
        ]

    def found_in(self, data: bytes) -> str | None:
        """The name of the first secret found, or None."""
        for name, form in self._forms:
            if form in data:
                return name
        return None
