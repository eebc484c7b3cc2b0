"""Small strict readers for the devnet merchant's settings, each `(value, name) -> value`.

May import: the standard library.
Never: guesses; an invalid value raises `BadSettings`.
"""

from collections.abc import Callable, Collection, Mapping

Reader = Callable[[object, str], object]


class BadSettings(ValueError):  # noqa: N818  the caller's mistake, reported with its reason
    """The settings are invalid; nothing was changed."""


def refuse_unknown(body: Mapping[str, object], known: Collection[str]) -> None:
    """Refuse unknown settings."""
    unknown = set(body) - set(known)
    if unknown:
        raise BadSettings(f"unknown settings: {', '.join(sorted(map(str, unknown)))}")


def choice(*allowed: str) -> Callable[[object, str], str]:
    """A reader for one of some words."""

    def read(value: object, name: str) -> str:
        if not isinstance(value, str) or value not in allowed:
            raise BadSettings(f"{name} must be one of {', '.join(allowed)}")
        return value

    return read


def whole(least: int, most: int) -> Callable[[object, str], int]:
    """A reader for a whole number within bounds."""

    def read(value: object, name: str) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            raise BadSettings(f"{name} must be a whole number from {least} to {most}")
        return value

    return read


def flag(value: object, name: str) -> bool:
    """Read true or false."""
    if not isinstance(value, bool):
        raise BadSettings(f"{name} must be true or false")
    return value


def or_null(read: Reader) -> Reader:
    """A reader for null, or for what `read` accepts."""
    return lambda value, name: None if value is None else read(value, name)
