"""The paths of the wallet's files, and which of them can be hidden from the daemon.

May import: core, secret_file, sandbox, settings.schema.
Never: reads a secret.
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
"""In the data folder: the key that signs approval links."""

WORDS_FILE = "recovery-words.txt"
"""In the data folder: new recovery words that no terminal showed. `payagent init` leaves them for the operator."""


def passphrase_file(settings: Settings, environ: Mapping[str, str], can_ask: bool) -> SecretFile | None:
    """Find the keystore's passphrase: the systemd credential, else `keystore.passphrase_file`; None means to ask.

    On the devnet the file may be open to others, because its money is worth nothing.

    Refused `keystore_locked` if there is no file and nobody to ask, or if the credential cannot be checked.
    """
    folder = environ.get("CREDENTIALS_DIRECTORY")
    if folder and _is_there(Path(folder) / CREDENTIAL_NAME):
        # systemd protects the folder; the file's access list shows as group bits
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
    """Refuse `config_invalid` if a config path is in a folder where the daemon writes.

    The devnet is exempt: nothing can be lost there, and one folder may hold everything.
    """
    if not settings.is_devnet:
        require_out_of_reach(places, folders)


def fence_plan(settings: Settings, config: Path, passphrase: SecretFile | None) -> fence.SandboxPlan:
    """Plan which of the wallet's secrets are hidden from the daemon.

    The daemon must be able to reread files that an operator may replace while it runs: the config and the files
    that it names.
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
    """Return the folders where the daemon may create files. Without a sandbox only its own are listed."""
    return [settings.data_dir, *(fence.temporary(plan.hidden) if plan.hidden else ())]
