"""Checks the HSM that holds the wallet's keys: its module, token, PIN, keys and signatures.

The module runs in this process. Never: tries the PIN if the token says that one try is left.
"""

import time
from collections.abc import Iterator
from pathlib import Path

from payagent.core.network import NETWORKS
from payagent.core.problems import Refused
from payagent.doctor.check_result import CheckResult
from payagent.secret_file import SecretFile, read_secret_file
from payagent.settings.paths import PIN_CREDENTIAL_NAME
from payagent.settings.schema import Settings
from payagent.signer.token import open_token, require_module
from payagent.wallet.keystore import Hsm

SLOW_S = 2.0
_SIGNATURES = 3


def check_hsm(settings: Settings, hsm: Hsm, pin: SecretFile | None) -> Iterator[CheckResult]:
    """Check as far as the first problem. `pin`: without it nothing is signed."""
    network = NETWORKS[settings.network]
    try:
        yield CheckResult("HSM module", f"{require_module(Path(hsm.module), network)}, safe from other users")
        token = open_token(hsm, settings.keystore.environment, network)
        detail = f"{hsm.token}, serial {hsm.serial}, signs with Ed25519; its PIN is not locked"
        yield CheckResult("HSM token", detail)
        if pin is None:
            detail = (
                "asked for on a terminal at start, unless the service has the credential " + PIN_CREDENTIAL_NAME
            )
            yield CheckResult("HSM PIN", detail)
            return
        token.log_in(read_secret_file(pin.path, private=pin.private))
        yield CheckResult("HSM PIN", f"{pin.path} opens the token")
        names = ", ".join(key.label for key in hsm.keys)
        safe = (
            "a key can leave the token in clear" if token.is_extractable() else "none can leave the token in clear"
        )
        yield CheckResult(
            "HSM keys", f"{names}: each once, as in keystore.json; {safe}", is_warning=safe[0] == "a"
        )
        began_s = time.monotonic()
        for number in range(_SIGNATURES):
            token.try_key(number % len(hsm.keys))
        took_s = (time.monotonic() - began_s) / _SIGNATURES
        yield CheckResult("HSM speed", f"{took_s:.3f} s for a signature", is_warning=took_s > SLOW_S)
    except Refused as refused:
        yield CheckResult("HSM", refused.detail, refused)
