"""How the devnet's merchant reads its settings: small strict readers, each `(value, name) -> value`.

Imports the standard library only. Never takes a value on a guess: what is not understood is `BadSettings`.
"""

from collections.abc import Callable, Collection, Mapping

Reader = Callable[[object, str], object]


class BadSettings(ValueError):  # noqa: N818  the caller's mistake, told with its reason
    """The settings are not understood; nothing was changed."""


def refuse_unknown(body: Mapping[str, object], known: Collection[str]) -> None:
    """Refuse a setting that nobody knows."""
    unknown = set(body) - set(known)
    if unknown:
        raise BadSettings(f"unknown settings: {', '.join(sorted(map(str, unknown)))}")


def choice(*allowed: str) -> Callable[[object, str], str]:
    """One of some words."""

    def read(value: object, name: str) -> str:
        if not isinstance(value, str) or value not in allowed:
            raise BadSettings(f"{name} must be one of {', '.join(allowed)}")
        return value

    return read


def whole(least: int, most: int) -> Callable[[object, str], int]:
    """A whole number within bounds."""

    def read(value: object, name: str) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            raise BadSettings(f"{name} must be a whole number from {least} to {most}")
        return value

    return read


def flag(value: object, name: str) -> bool:
    """true or false."""
    if not isinstance(value, bool):
        raise BadSettings(f"{name} must be true or false")
    return value


def or_null(read: Reader) -> Reader:
    """What `read` reads, or null."""
    return lambda value, name: None if value is None else read(value, name)
