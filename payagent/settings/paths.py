"""Where the wallet's files lie, and what of them the daemon can be kept from.

May import: core, secret_file, sandbox, settings.schema. Never: reads a secret.
"""

import stat
from collections.abc import Iterable, Mapping
from pathlib import Path

from payagent import sandbox as fence
from payagent.core.problems import Refused
from payagent.secret_file import SecretFile, require_out_of_reach
from payagent.settings.schema import Settings

CREDENTIAL_NAME = "keystore-passphrase"
KEYSTORE_FILE = "keystore.json"
LEDGER_FILE = "ledger.db"
TOKEN_FILE = "operator.token"  # noqa: S105  the file's name
LINKS_KEY_FILE = "approval-links.key"
"""In the data folder: what links are signed with by which people decide."""

WORDS_FILE = "recovery-words.txt"
"""In the data folder: new words that no terminal showed, left there by `payagent init` to be taken away."""


def passphrase_file(settings: Settings, environ: Mapping[str, str], can_ask: bool) -> SecretFile | None:
    """Where the keystore's passphrase lies: systemd credential, else `keystore.passphrase_file`; None is to ask.

    On the devnet the file may be open to others: its money is worth nothing.

    Raises `keystore_locked` when there is neither a file nor anybody who can answer, and when whether there is a
    credential cannot be seen.
    """
    folder = environ.get("CREDENTIALS_DIRECTORY")
    if folder and _is_there(Path(folder) / CREDENTIAL_NAME):
        # systemd guards the folder; on the file its access list shows as group bits
        return SecretFile(Path(folder) / CREDENTIAL_NAME, private=False)
    if settings.keystore.passphrase_file is not None:
        return SecretFile(settings.keystore.passphrase_file, private=not settings.is_devnet)
    if not can_ask:
        raise Refused(
            "keystore_locked",
            f"no passphrase: no systemd credential {CREDENTIAL_NAME}, no keystore.passphrase_file, no terminal",
        )
    return None


def _is_there(credential: Path) -> bool:
    try:
        return stat.S_ISREG(credential.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        told = f"the systemd credential {credential} cannot be looked at: {error.strerror}"
        raise Refused("keystore_locked", told) from None


def require_config_out_of_reach(settings: Settings, places: Iterable[Path], folders: Iterable[Path]) -> None:
    """Refuse, `config_invalid`, a place of the config in a folder where the daemon writes. On the devnet, where
    nothing can be lost, one folder may hold everything.
    """
    if not settings.is_devnet:
        require_out_of_reach(places, folders)


def fence_plan(settings: Settings, config: Path, passphrase: SecretFile | None) -> fence.SandboxPlan:
    """What of the wallet's secrets the daemon can be kept from, by where they lie.

    It must be able to read anew what an operator may replace while it runs: the config and what that names.
    """
    read_anew = [
        config,
        settings.api.tls_certificate_file,
        settings.api.tls_key_file,
        settings.alerts.webhook_secret_file,
        *(provider.project_id_file for provider in settings.chain.providers),
        *(merchant.api_key_file for merchant in settings.merchants.values()),
    ]
    return fence.plan(
        [settings.data_dir / name for name in (KEYSTORE_FILE, WORDS_FILE)],
        None if passphrase is None else passphrase.path,
        [path for path in read_anew if path is not None],
        fence.version(),
    )


def written_by_daemon(settings: Settings, plan: fence.SandboxPlan) -> list[Path]:
    """The folders where the daemon may make files while it runs; without a fence those that are its own."""
    return [settings.data_dir, *(fence.temporary(plan.hidden) if plan.hidden else ())]
