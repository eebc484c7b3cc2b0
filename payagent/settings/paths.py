"""The paths of the wallet's files, and which of them the sandbox can hide from the daemon.

Never: reads a secret.
"""

import stat
from collections.abc import Iterable, Mapping
from pathlib import Path
from socket import gethostname

from payagent import sandbox
from payagent.core.problems import Refused
from payagent.secret_file import SecretFile, require_out_of_reach
from payagent.settings.schema import Settings

CREDENTIAL_NAME, PIN_CREDENTIAL_NAME = "keystore-passphrase", "keystore-pin"
KEYSTORE_FILE = "keystore.json"
LEDGER_FILE = "ledger.db"
LINKS_KEY_FILE = "approval-links.key"
"""The key that signs approval links. It is in the data dir."""


def host_of(settings: Settings, own_id: str) -> str:
    """The name of this host in a fleet: whose signer's record an account's last attempt is in.

    People know it by its first part. Daemons know it by `own_id`, also under another host name.
    """
    return f"{gethostname()}:{settings.data_dir}#{own_id}"


WORDS_FILE = "recovery-words.txt"
"""New recovery words that no terminal could show. `payagent init` leaves them in the data dir."""


def passphrase_file(
    settings: Settings, environ: Mapping[str, str], can_ask: bool, *, in_hsm: bool = False
) -> SecretFile | None:
    """Find the passphrase's file: the systemd credential, else `keystore.passphrase_file`. None means to ask.

    `in_hsm`: find that of the HSM's PIN, which is the credential keystore-pin, else `keystore.pin_file`.

    On the devnet other users may read the file: its money is worth nothing. Refused `keystore_locked` if there is
    no file and no terminal (`can_ask`), or if the credential cannot be checked.
    """
    folder, keystore = environ.get("CREDENTIALS_DIRECTORY"), settings.keystore
    what, key, path, credential = (
        ("PIN", "pin_file", keystore.pin_file, PIN_CREDENTIAL_NAME)
        if in_hsm
        else ("passphrase", "passphrase_file", keystore.passphrase_file, CREDENTIAL_NAME)
    )
    if folder and _is_file(Path(folder) / credential):
        # systemd protects the folder; the file's access list shows as group bits
        return SecretFile(Path(folder) / credential, private=False)
    if path is not None:
        return SecretFile(path, private=not settings.is_devnet)
    if not can_ask:
        raise Refused(
            "keystore_locked", f"no {what}: no systemd credential {credential}, no keystore.{key} and no terminal"
        )
    return None


def _is_file(credential: Path) -> bool:
    try:
        return stat.S_ISREG(credential.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        detail = f"cannot read the systemd credential {credential}: {error.strerror}"
        raise Refused("keystore_locked", detail) from None


def require_config_out_of_reach(settings: Settings, places: Iterable[Path], folders: Iterable[Path]) -> None:
    """Refuse `config_invalid` if a config path is in a folder where the daemon writes.

    The devnet is exempt: its money is worth nothing, and one folder may hold everything.
    """
    if not settings.is_devnet:
        require_out_of_reach(places, folders)


def sandbox_plan(settings: Settings, config: Path, passphrase: SecretFile | None) -> sandbox.SandboxPlan:
    """Plan which of the wallet's secrets the sandbox hides from the daemon.

    The daemon must still be able to read what an operator may replace while it runs: the config and the files that
    it names.
    """
    reread = [
        config,
        settings.api.tls_certificate_file,
        settings.api.tls_key_file,
        settings.store.password_file,
        *(target.secret_file for target in settings.notifications),
        *(provider.token_file for provider in settings.chain.providers),
        *(merchant.api_key_file for merchant in settings.merchants.values()),
    ]
    return sandbox.plan(
        [settings.data_dir / name for name in (KEYSTORE_FILE, WORDS_FILE)],
        None if passphrase is None else passphrase.path,
        [path for path in reread if path is not None],
        sandbox.version(),
    )


def written_by_daemon(settings: Settings, plan: sandbox.SandboxPlan) -> list[Path]:
    """Return the folders where the daemon may create files: without a sandbox, only its own."""
    return [settings.data_dir, *(sandbox.temporary(plan.hidden) if plan.hidden else ())]
