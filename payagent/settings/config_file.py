"""Finds and reads the config file, and from it alone where the daemon is.

A command that only asks the daemon something needs no more of the config, and is spared the time to validate it.
Never: validates; repeats a value in an error.
"""

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Any

from payagent.core.problems import Refused

ENV_PREFIX = "PAYAGENT_"
CONFIG_VARIABLE = "PAYAGENT_CONFIG"
TOKEN_VARIABLE = "PAYAGENT_TOKEN"  # noqa: S105  where clients find their app token; not a setting
URL_VARIABLE = "PAYAGENT_URL"
NOT_SETTINGS = (CONFIG_VARIABLE, TOKEN_VARIABLE, URL_VARIABLE)
TOKEN_FILE = "operator.token"  # noqa: S105  the file's name

Tree = dict[str, Any]


@dataclass(frozen=True, slots=True)
class DaemonPaths:
    """The daemon's socket, and the folder with its operator's token."""

    socket: Path
    data_dir: Path


def config_paths(config: Path | None, environ: Mapping[str, str], etc: Path = Path("/etc")) -> list[Path]:
    """Return the paths to look at for the config file: the one that is named, or the usual ones in order."""
    if named := config or environ.get(CONFIG_VARIABLE):
        return [Path(named)]
    return [home(environ) / ".config/payagent/config.toml", etc / "payagent/config.toml"]


def find_config(config: Path | None, environ: Mapping[str, str], etc: Path = Path("/etc")) -> Path:
    """Find the config file.

    The order is `--config`, $PAYAGENT_CONFIG, ~/.config/payagent/config.toml, /etc/payagent/config.toml. If one of
    the first two names a file, no other is used. Refused `config_invalid` if there is no file.
    """
    paths = config_paths(config, environ, etc)
    if len(paths) == 1 and not paths[0].is_file():
        source = "--config" if config else CONFIG_VARIABLE
        raise Refused(
            "config_invalid",
            f"{source} names {paths[0]}, which is not a file",
            fix=f"Name the config file, or make one there: payagent init --config {quote(str(paths[0]))}",
        )
    for path in paths:
        if path.is_file():
            return path
    listed = " or ".join(str(path) for path in paths)
    raise Refused(
        "config_invalid",
        f"no config file at {listed}",
        fix="Make a wallet and a config with `payagent init`. If you have one elsewhere, pass --config FILE.",
    )


def read_toml(path: Path) -> Tree:
    """Refused: `config_invalid`."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise Refused("config_invalid", f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise Refused("config_invalid", f"{path} is not UTF-8 text") from None
    except (ValueError, RecursionError) as error:  # also for numbers too long and tables too deep for Python
        where = re.search(r"\(at [^()]*\)$", str(error))
        raise Refused("config_invalid", f"{path} is not valid TOML {where[0] if where else ''}") from None


def default_paths(tree: Tree, environ: Mapping[str, str]) -> Tree:
    """The defaults of `data_dir` and `api.socket`.

    A relative $XDG_RUNTIME_DIR is ignored (XDG Base Directory Specification).
    """
    data_dir = tree.get("data_dir", str(home(environ) / ".local/share/payagent"))
    runtime = environ.get("XDG_RUNTIME_DIR", "")
    socket = f"{runtime}/payagent/payagent.sock" if runtime.startswith("/") else f"{data_dir}/payagent.sock"
    return {"data_dir": data_dir, "api": {"socket": socket}}


def find_daemon(config: Path | None, environ: Mapping[str, str]) -> DaemonPaths | None:
    """Where the config file says that the daemon is; None if only the validated settings tell.

    They do if a variable overrides the file, or the file has no text where a path belongs.
    """
    tree = read_toml(find_config(config, environ))
    if any(name.upper().startswith(ENV_PREFIX) and name not in NOT_SETTINGS for name in environ):
        return None
    defaults, api = default_paths(tree, environ), tree.get("api", {})
    texts = (api.get("socket", defaults["api"]["socket"]) if isinstance(api, dict) else None, defaults["data_dir"])
    paths = [Path(text).expanduser() for text in texts if isinstance(text, str)]
    if len(paths) < len(texts) or not all(path.is_absolute() for path in paths):
        return None
    return DaemonPaths(*paths)


def home(environ: Mapping[str, str]) -> Path:
    return Path(environ["HOME"]) if environ.get("HOME") else Path.home()
