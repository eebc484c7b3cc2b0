"""Planted secrets: every test that uses one of these fails if it shows up in what the test printed or logged.

`plant` a secret where a test makes one. tests/conftest.py looks after each test.
"""

_PLANTED: dict[str, str] = {}


def plant(name: str, secret: str) -> str:
    """Watch for a secret from now on; gives it back. `name` is what a report calls it."""
    _PLANTED[secret] = name
    return secret


def found_in(text: str) -> list[str]:
    """Names of the planted secrets that a text holds."""
    return sorted({name for secret, name in _PLANTED.items() if secret in text})
