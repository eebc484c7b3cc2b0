"""An HSM in software: Debian's SoftHSM2 with a token in a folder, and a shim before it that goes wrong."""

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pkcs11
import pytest

from kit.canaries import plant
from payagent.core.network import NETWORKS, Network
from payagent.signer.pkcs11_token import Pkcs11Token
from payagent.wallet.keystore import Header
from payagent.wallet.new_keystore import create_hsm, hsm_of

MODULE = Path("/usr/lib/softhsm/libsofthsm2.so")
PIN = plant("the PIN of the HSM", "a canary that opens an HSM")
SHIM = Path(__file__).with_name("hsm_shim.c")

needs_softhsm = pytest.mark.skipif(
    shutil.which("softhsm2-util") is None, reason="SoftHSM2 is missing (Debian's softhsm2)"
)
needs_cc = pytest.mark.skipif(
    shutil.which("cc") is None, reason="no C compiler, so no shim before SoftHSM2 (Debian's gcc)"
)


@dataclass(frozen=True)
class SoftHsm:
    """A token in a folder. `module`: SoftHSM's, or the shim's."""

    folder: Path
    module: Path

    @property
    def environment(self) -> dict[str, str]:
        return {
            "SOFTHSM2_CONF": str(self.folder / "softhsm2.conf"),
            "SHIM": str(self.folder),
            "SHIM_MODULE": str(MODULE),
        }

    @property
    def tokens(self) -> Path:
        return self.folder / "tokens"

    @property
    def pin_file(self) -> Path:
        return self.folder / "pin"

    def uri(self, label: str = "payagent-0") -> str:
        return f"pkcs11:token=payagent;object={label}?module-path={self.module}"

    def go(self, mode: str) -> None:
        """Make the shim go wrong in this way from now on; empty: not at all."""
        new = self.folder / "mode.new"
        new.write_text(mode)
        new.rename(self.folder / "mode")

    def noted(self, what: str) -> int:
        """How often the shim was asked for a login or a signature."""
        log = self.folder / "log"
        return log.read_text().split().count(what) if log.exists() else 0

    def opened(self, *labels: str, generate: bool = False, network: Network = NETWORKS["devnet"]) -> Pkcs11Token:
        """The token in this process, logged in, with these keys."""
        unload()
        hsm = hsm_of([self.uri(label) for label in labels or ("payagent-0",)])
        token = Pkcs11Token(hsm, self.environment, network)
        token.log_in(PIN, generate=generate)
        return token

    def rename(self, label: str, new: str) -> None:
        """Give a key pair another label."""
        token, of = self.opened(label)._look(), pkcs11.Attribute
        session = token.open(rw=True, user_pin=PIN)
        for one in list(session.get_objects({of.LABEL: label})):
            one[of.LABEL] = new

    def keystore(self, path: Path, *labels: str, network: Network = NETWORKS["devnet"]) -> Header:
        """Write keystore.json for keys that exist."""
        return create_hsm(path, self.opened(*labels).hsm, network)


def unload() -> None:
    """Leave no module initialised in this process: another one may bring the same SoftHSM."""
    for library in pkcs11._loaded.values():
        library.finalize()


def make_softhsm(folder: Path, *, shim: bool = False) -> SoftHsm:
    """Make a token with a PIN in a new folder, without keys."""
    (folder / "tokens").mkdir(parents=True)
    hsm = SoftHsm(folder, compiled(folder) if shim else MODULE)
    hsm.pin_file.touch(mode=0o600)
    hsm.pin_file.write_text(PIN)
    (folder / "softhsm2.conf").write_text(f"directories.tokendir = {hsm.tokens}\nlog.level = ERROR\n")
    token = ("--init-token", "--free", "--label", "payagent", "--so-pin", "security officer", "--pin", PIN)
    subprocess.run(
        ["softhsm2-util", *token], env=os.environ | hsm.environment, check=True, capture_output=True, timeout=60
    )
    return hsm


def compiled(folder: Path) -> Path:
    module = folder / "shim.so"
    subprocess.run(
        ["cc", "-std=gnu11", "-shared", "-fPIC", "-o", str(module), str(SHIM), "-ldl"], check=True, timeout=60
    )
    return module
