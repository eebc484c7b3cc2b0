"""Find the config file, merge it with the environment and flags, and validate once (decision 0002).

Start with `load_settings`.
May import: pydantic, pydantic-settings, core, settings.field_types, settings.schema.
Never: repeats a value in a message.
"""

import difflib
import json
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_origin

from pydantic import ValidationError
from pydantic_settings import EnvSettingsSource
from pydantic_settings import SettingsError as SourceError

from payagent.core.network import NETWORKS
from payagent.core.problems import Refused
from payagent.settings.field_types import named
from payagent.settings.schema import (
    ENV_PREFIX,
    AlertSettings,
    ApiSettings,
    ApprovalSettings,
    AssetLimitSettings,
    ChainSettings,
    KeystoreSettings,
    LimitSettings,
    MerchantLimitSettings,
    MerchantSettings,
    PaymentSettings,
    ProviderSettings,
    ProxySettings,
    Settings,
    SettingsTable,
    TopupSettings,
    WalletSettings,
)

CONFIG_VARIABLE = "PAYAGENT_CONFIG"
TOKEN_VARIABLE = "PAYAGENT_TOKEN"  # noqa: S105  variable with which clients find their app token; not a setting

Tree = dict[str, Any]

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
"""The same for each merchant."""


class _Environment(EnvSettingsSource):
    """pydantic-settings' reader of variables, over an environment that is passed in."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ
        super().__init__(Settings)

    def _load_env_vars(self) -> Mapping[str, str | None]:
        return {name.lower(): value for name, value in self._environ.items()}


def config_places(config: Path | None, environ: Mapping[str, str], etc: Path = Path("/etc")) -> list[Path]:
    """Return where to look for the config file: the named place, or the usual ones in order."""
    if named := config or environ.get(CONFIG_VARIABLE):
        return [Path(named)]
    return [_home(environ) / ".config/payagent/config.toml", etc / "payagent/config.toml"]


def find_config(config: Path | None, environ: Mapping[str, str], etc: Path = Path("/etc")) -> Path:
    """Find the config file.

    The order is `--config`, $PAYAGENT_CONFIG, ~/.config/payagent/config.toml, /etc/payagent/config.toml. A named
    file must exist; otherwise the first that exists is used. Refused `config_invalid` if there is none.
    """
    places = config_places(config, environ, etc)
    if len(places) == 1 and not places[0].is_file():
        source = "--config" if config else CONFIG_VARIABLE
        raise Refused("config_invalid", f"{places[0]}, named by {source}, is not a file")
    for place in places:
        if place.is_file():
            return place
    looked = " and ".join(str(place) for place in places)
    raise Refused(
        "config_invalid", f"no config file: looked for {looked}; make one with `payagent init` or name it"
    )


def load_settings(
    config: Path | None, environ: Mapping[str, str], overrides: Mapping[str, Any] | None = None
) -> Settings:
    """Read the settings. `overrides` are flags, as a tree of the same keys.

    Refused `config_invalid` with one line per wrong key: place, key and fix, but not the value.
    """
    path = find_config(config, environ)
    tree = _merged(_merged(_read_toml(path), _read_environ(environ)), overrides or {})
    try:
        return Settings(**_with_defaults(tree, environ))
    except ValidationError as error:
        lines = [_explain(dict(item), path, environ, overrides or {}) for item in error.errors()]
    raise Refused("config_invalid", "\n".join(lines))


def read_merchant(name: str, table: Mapping[str, object], network: str) -> MerchantSettings:
    """Validate a merchant's table given at run time like one in the config file. Refused `bad_request`."""
    try:
        named({name: table})
        return MerchantSettings.model_validate({**_MERCHANT_DEFAULTS[network == "devnet"], **table})
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(step) for step in first["loc"])
        raise Refused("bad_request", f"{key}: {_fix(first, ['merchants', name, key])}", key=key) from None
    except ValueError as error:
        raise Refused("bad_request", str(error), key="name") from None


def _home(environ: Mapping[str, str]) -> Path:
    return Path(environ["HOME"]) if environ.get("HOME") else Path.home()


def _read_toml(path: Path) -> Tree:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise Refused("config_invalid", f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise Refused("config_invalid", f"{path} is not UTF-8 text") from None
    except (ValueError, RecursionError) as error:  # also for numbers too long and tables too deep for Python
        where = re.search(r"\(at [^()]*\)$", str(error))
        raise Refused("config_invalid", f"{path} is not valid TOML {where[0] if where else ''}") from None


def _read_environ(environ: Mapping[str, str]) -> Tree:
    for variable in environ:
        if variable.startswith(ENV_PREFIX) and variable not in (CONFIG_VARIABLE, TOKEN_VARIABLE):
            key = variable.removeprefix(ENV_PREFIX).lower().split("__")[0]
            if key not in Settings.model_fields:
                hint = _did_you_mean(key, Settings.model_fields)
                raise Refused(
                    "config_invalid", f"environment {variable}: {key} is not a known key; {hint}unset it"
                )
    try:
        tree = dict(_Environment(environ)())
    except SourceError as error:
        field = re.search(r'field "(\w+)"', str(error))
        name = f"{ENV_PREFIX}{field[1].upper()}" if field else "a variable"
        raise Refused("config_invalid", f"environment {name}: a list or a table is written as JSON") from None
    if isinstance(merchants := tree.get("merchants"), Mapping):
        tree["merchants"] = {name: _merchant_of_environ(table) for name, table in merchants.items()}
    return tree


def _merchant_of_environ(table: object) -> object:
    """Convert a merchant's table from environment variables.

    pydantic-settings knows no types inside a table of tables, so lists and booleans are parsed as JSON here, as
    lists are elsewhere.
    """
    if not isinstance(table, Mapping):
        return table
    return {key: _json_or_text(value) if key in _JSON_OF_MERCHANT else value for key, value in table.items()}


def _json_or_text(value: object) -> object:
    """Parse JSON. Other text stays text, and is validated like any value of its key."""
    try:
        return json.loads(value) if isinstance(value, str) else value
    except (ValueError, RecursionError):
        return value


_JSON_OF_MERCHANT = frozenset(
    name
    for name, field in MerchantSettings.model_fields.items()
    if field.annotation is bool or get_origin(field.annotation) is tuple
)


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
    """Add the defaults that depend on the network and the user; the model has the others.

    A runtime folder that is not absolute is ignored (XDG Base Directory Specification).
    """
    data_dir = tree.get("data_dir", str(_home(environ) / ".local/share/payagent"))
    runtime = environ.get("XDG_RUNTIME_DIR", "")
    socket = f"{runtime}/payagent/payagent.sock" if runtime.startswith("/") else f"{data_dir}/payagent.sock"
    places, is_devnet = {"data_dir": data_dir, "api": {"socket": socket}}, tree.get("network") == "devnet"
    merchants = tree.get("merchants")
    named = merchants if isinstance(merchants, Mapping) else {}
    defaults = {"merchants": dict.fromkeys(named, _MERCHANT_DEFAULTS[is_devnet])}
    return _merged(_merged(_merged(places, _DEFAULTS[is_devnet]), defaults), tree)


def _explain(
    error: Mapping[str, Any], path: Path, environ: Mapping[str, str], overrides: Mapping[str, Any]
) -> str:
    """Explain one pydantic error in a line: where the key was set, its name, and what to write."""
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
        return f"is missing and has no default; write one of {', '.join(NETWORKS)}"
    if error["type"] == "missing":
        return "is missing; config/payagent.example.toml explains it"
    if error["type"] == "extra_forbidden":
        hint = _did_you_mean(steps[-1], _known_keys(steps))
        return f"is not a known key; {hint}config/payagent.example.toml explains every key"
    return _SHAPES.get(error["type"]) or str(error["msg"]).removeprefix("Value error, ")


_SHAPES = {
    "bool_type": "write true or false",
    "tuple_type": "write a list",
    "frozen_set_type": "write a list",
    "dict_type": "write a table of keys",
    "model_type": "write a table of keys",
}
"""What to write, by pydantic's type of error."""


def _known_keys(steps: list[str]) -> list[str]:
    """Return the keys of the table around an unknown key."""
    model: Any = Settings
    for step in steps[:-1]:
        if model is Settings:
            model = _TABLES[step]
        elif step in _ROWS:
            model = _ROWS[step]
    return [field.alias or name for name, field in model.model_fields.items()]


_ROWS: dict[str, type[SettingsTable]] = {
    "providers": ProviderSettings,
    "assets": AssetLimitSettings,
    "topup": TopupSettings,
    "limits": MerchantLimitSettings,
}
_TABLES: dict[str, type[SettingsTable]] = {
    "api": ApiSettings,
    "chain": ChainSettings,
    "payments": PaymentSettings,
    "merchants": MerchantSettings,
    "limits": LimitSettings,
    "approvals": ApprovalSettings,
    "proxy": ProxySettings,
    "alerts": AlertSettings,
    "wallet": WalletSettings,
    "keystore": KeystoreSettings,
}


def _did_you_mean(key: str, known: Any) -> str:
    close = difflib.get_close_matches(key, list(known), n=1)
    return f"did you mean {close[0]}? " if close else ""
