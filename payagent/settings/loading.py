"""Merges the config file with the environment and flags, and validates the result (decision 0002).

Start with `load_settings`.
Never: repeats a value in an error.
"""

import difflib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, get_args, get_origin

from pydantic import ValidationError

from payagent.core.network import NETWORKS
from payagent.core.problems import Refused
from payagent.secret_file import read_secret_file
from payagent.settings.config_file import ENV_PREFIX, NOT_SETTINGS, Tree, default_paths, find_config, read_toml
from payagent.settings.field_types import named
from payagent.settings.schema import MerchantSettings, Settings, SettingsTable, StoreSettings

_DEFAULTS: dict[bool, dict[str, Tree]] = {
    True: {
        "limits": {"per_payment": "1000 ADA", "per_day": "100000 ADA"},
        "payments": {"confirm_depth": 1},
    },
    False: {
        "limits": {"per_payment": "5 ADA", "per_day": "20 ADA"},
        "payments": {"confirm_depth": 3},
    },
}
"""Defaults by whether the network is the devnet."""

_MERCHANT_DEFAULTS: dict[bool, Tree] = {
    True: {"pin": "off", "price_rise_percent_max": "off", "payments_in_flight_max": "off"},
    False: {"pin": "first_use", "price_rise_percent_max": 25, "payments_in_flight_max": 100},
}
"""Defaults of each merchant, by whether the network is the devnet."""


def load_settings(
    config: Path | None, environ: Mapping[str, str], overrides: Mapping[str, Any] | None = None
) -> Settings:
    """Read the settings. `overrides` are flags, as a tree of the same keys.

    Refused `config_invalid` with one line for each wrong key: where it was set, its name, and what to write.
    """
    path = find_config(config, environ)
    tree = _merged(_merged(read_toml(path), _read_environ(environ)), overrides or {})
    try:
        return Settings(**_with_defaults(tree, environ))
    except ValidationError as error:
        lines = [_explain(dict(item), path, environ, overrides or {}) for item in error.errors()]
    raise Refused("config_invalid", "\n".join(lines))


def read_store_url(url: str) -> str:
    """A URL for `store.url`. Refused `config_invalid` if it cannot be one, or has a password."""
    try:
        StoreSettings(url=url)
    except ValidationError as error:
        raise Refused("config_invalid", f"the URL of the database: {error.errors()[0]['msg']}") from None
    return url


def store_password(settings: Settings) -> str | None:
    """The password of `store.url`; None if it needs none."""
    path = settings.store.password_file
    return None if path is None else read_secret_file(path)


def read_merchant(name: str, table: Mapping[str, object], network: str) -> MerchantSettings:
    """Validate the table of a merchant that is added at run time. Refused `bad_request`."""
    try:
        named({name: table})
        return MerchantSettings.model_validate({**_MERCHANT_DEFAULTS[network == "devnet"], **table})
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(step) for step in first["loc"])
        raise Refused("bad_request", f"{key}: {_fix(first, ['merchants', name, key])}", key=key) from None
    except ValueError as error:
        raise Refused("bad_request", str(error), key="name") from None


def _read_environ(environ: Mapping[str, str]) -> Tree:
    tree: Tree = {}
    for variable in sorted(environ):  # a table as a whole before its single keys
        if not variable.upper().startswith(ENV_PREFIX) or variable in NOT_SETTINGS:
            continue
        *path, key = steps = variable[len(ENV_PREFIX) :].lower().split("__")
        if steps[0] not in Settings.model_fields:
            hint = _did_you_mean(steps[0], Settings.model_fields)
            raise Refused(
                "config_invalid", f"environment {variable}: unknown key {steps[0]}. {hint}Unset the variable"
            )
        table = tree
        for step in path:
            below = table.setdefault(step, {})
            table = below if isinstance(below, dict) else {}  # the validation refuses any other value
        table[key] = _parse(environ[variable], _type_at(steps))
    return tree


def _parse(text: str, kind: Any) -> object:
    """Parse a list, a table or a boolean as JSON. Text that is not JSON is left for the validation to refuse."""
    if kind is not bool and get_origin(kind) not in (tuple, frozenset, Mapping) and not _is_table(kind):
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _is_table(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, SettingsTable)


def _type_at(steps: Iterable[str]) -> Any:
    """Return the type of the value at a path of keys; None if there is no such key."""
    kind: Any = Settings
    for step in steps:
        if _is_table(kind):
            kind = {field.alias or name: field.annotation for name, field in kind.model_fields.items()}.get(step)
        else:  # a number in a list of tables, or a merchant's name
            kind = next(filter(_is_table, get_args(kind)), None)
    return kind


def _merged(low: Mapping[str, Any], high: Mapping[str, Any]) -> Tree:
    tree = dict(low)
    for key, value in high.items():
        below = tree.get(key)
        if isinstance(value, Mapping) and isinstance(below, Mapping):
            tree[key] = _merged(below, value)
        else:
            tree[key] = value
    return tree


def _with_defaults(tree: Tree, environ: Mapping[str, str]) -> Tree:
    """Add the defaults that depend on the network and the user. The model has the others."""
    paths, is_devnet = default_paths(tree, environ), tree.get("network") == "devnet"
    merchants = tree.get("merchants")
    named = merchants if isinstance(merchants, Mapping) else {}
    defaults = {"merchants": dict.fromkeys(named, _MERCHANT_DEFAULTS[is_devnet])}
    return _merged(_merged(_merged(paths, _DEFAULTS[is_devnet]), defaults), tree)


def _explain(
    error: Mapping[str, Any], path: Path, environ: Mapping[str, str], overrides: Mapping[str, Any]
) -> str:
    """Explain one pydantic error in one line: where the key was set, its name, and what to write."""
    steps = [str(step) for step in error["loc"]]
    key = "".join(f"[{step}]" if step.isdigit() else f".{step}" for step in steps).removeprefix(".")
    return f"{_place(steps, path, environ, overrides)}: {key + ': ' if key else ''}{_fix(error, steps)}"


def _place(steps: list[str], path: Path, environ: Mapping[str, str], overrides: Mapping[str, Any]) -> str:
    flags: object = overrides
    for step in steps:
        flags = flags.get(step) if isinstance(flags, Mapping) else flags
    if steps and flags is not None and flags is not overrides:
        return "command line"
    for count in range(len(steps), 0, -1):
        variable = ENV_PREFIX + "__".join(steps[:count]).upper()
        if variable in environ:
            return f"environment {variable}"
    return str(path)


def _fix(error: Mapping[str, Any], steps: list[str]) -> str:
    if error["type"] == "missing" and steps == ["network"]:
        return f"missing. Write one of {', '.join(NETWORKS)}. There is no default"
    if error["type"] == "missing":
        return "missing. `payagent init --example` explains it"
    if error["type"] == "extra_forbidden":
        known = [field.alias or name for name, field in _type_at(steps[:-1]).model_fields.items()]
        hint = _did_you_mean(steps[-1], known)
        return f"unknown key. {hint}`payagent init --example` explains every key"
    return _SHAPES.get(error["type"]) or str(error["msg"]).removeprefix("Value error, ").replace(
        "Input should", "must"
    )


_SHAPES = {
    "bool_type": "write true or false",
    "tuple_type": "write a list (JSON in a variable)",
    "frozen_set_type": "write a list (JSON in a variable)",
    "dict_type": "write a table of keys",
    "model_type": "write a table of keys",
}
"""What to write, by pydantic's type of error."""


def _did_you_mean(key: str, known: Any) -> str:
    close = difflib.get_close_matches(key, list(known), n=1)
    return f"Did you mean {close[0]}? " if close else ""
