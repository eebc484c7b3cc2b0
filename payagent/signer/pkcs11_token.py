"""Signs with keys that an HSM holds behind a PKCS#11 module. It needs the extra `pkcs11`.

The module is loaded into the process that makes a `Pkcs11Token`: the token process, `payagent init` or `payagent
doctor`. To import this without the extra raises `TokenRefused`.

Never: tries a PIN again that was refused; signs 32 bytes of its own, which could be a transaction's id.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from payagent.core.network import Network
from payagent.core.problems import Refused
from payagent.secret_file import open_to_others, require_unchanged_by_others
from payagent.signer.token import TokenAway, TokenRefused, is_signature
from payagent.wallet.keystore import Hsm, HsmKey

try:
    import pkcs11
    from pkcs11.util.ec import encode_named_curve_parameters
except ImportError:
    why = "payagent's extra pkcs11 is missing: install cardano-payagent[pkcs11]"
    raise TokenRefused("keystore_invalid", why) from None

SAMPLE = b"payagent signs this long text to see whether the key in the HSM works. It is no id of a transaction."
ID_BYTES, OID_ED25519 = 8, "1.3.101.112"
_NO_LOGIN = pkcs11.TokenFlag.USER_PIN_FINAL_TRY | pkcs11.TokenFlag.USER_PIN_LOCKED
_FOR_A_PERSON = (
    *(pkcs11.PinIncorrect, pkcs11.PinLocked, pkcs11.PinInvalid, pkcs11.PinLenRange, pkcs11.PinExpired),
    *(pkcs11.UserPinNotInitialized, pkcs11.MultipleObjectsReturned, pkcs11.MultipleTokensReturned),
)


@contextmanager
def _errors() -> Iterator[None]:
    """Raise the library's errors as `TokenAway`, or as `TokenRefused` those that only a person mends."""
    try:
        yield
    except pkcs11.PKCS11Error as error:
        detail = f"the HSM says {type(error).__name__} {error}".strip()
        if isinstance(error, _FOR_A_PERSON):
            raise TokenRefused("keystore_invalid", detail) from None
        raise TokenAway("signer_away", detail) from None


def require_module(hsm: Hsm, network: Network) -> str:
    """Check that only root can change the module, which sees the PIN; return path and mode.

    On the devnet it may be this user's. Refused `config_invalid`.
    """
    checked = require_unchanged_by_others(Path(hsm.module))
    if Path(hsm.module).stat().st_uid != 0 and network.name != "devnet":
        raise open_to_others(f"{hsm.module} is not root's: its owner could replace it", f"chown 0 {hsm.module}")
    return checked


class Pkcs11Token:
    """A `HashSigner` whose keys are found on a token by their labels, and compared with what is known of them.

    `hsm` is what was found. `environment`: more variables for the module. Raises `TokenAway` or `TokenRefused`.
    Refused: `config_invalid` for the module's file.
    """

    def __init__(self, hsm: Hsm, environment: Mapping[str, str], network: Network) -> None:
        require_module(hsm, network)
        os.environ.update(environment)
        self.hsm, self._pin = hsm, ""
        self._token = self._look()
        self._private: list[Any] = []

    @_errors()
    def _look(self) -> Any:
        """Find the token. It must have the serial, the mechanism, and more than one try of the PIN left."""
        library, label = pkcs11.lib(self.hsm.module), self.hsm.token
        library.reinitialize()  # only so it sees a token that was away
        token = library.get_token(token_label=label)
        serial = token.serial.decode(errors="replace")
        for is_wrong, why in (
            (self.hsm.serial not in ("", serial), f"has the serial {serial}, not {self.hsm.serial}"),
            (pkcs11.Mechanism.EDDSA not in token.slot.get_mechanisms(), "cannot sign by Ed25519 (CKM_EDDSA)"),
            (token.flags & _NO_LOGIN, "has one try of the PIN left, or none: payagent does not use it"),
        ):
            if is_wrong:
                raise TokenRefused("keystore_invalid", f"token {label} {why}")
        self.hsm = replace(self.hsm, serial=serial)
        return token

    @_errors()
    def log_in(self, pin: str, *, generate: bool = False) -> None:
        """Log in and find each key once. `generate`: make them first."""
        session = self._token.open(rw=generate, user_pin=pin)
        self._pin = pin
        for key in self.hsm.keys if generate else ():
            _generate(session, key.label)
        found = [_find(session, key) for key in self.hsm.keys]
        self._private = [private for private, _ in found]
        self.hsm = replace(self.hsm, keys=tuple(key for _, key in found))

    def keys(self) -> tuple[bytes, ...]:
        """As `HashSigner.keys`."""
        return self.hsm.public_keys

    def sign_hash(self, key: int, tx_id: bytes) -> bytes:
        """As `HashSigner.sign_hash`. After an error it logs in again, and asks once more."""
        try:
            return self._sign(key, tx_id)
        except TokenAway:
            self._token = self._look()
            self.log_in(self._pin)
            return self._sign(key, tx_id)

    def try_key(self, key: int) -> None:
        """Sign a text, and verify it. Raises `TokenRefused` if the signature is wrong."""
        if not is_signature(self._sign(key, SAMPLE), SAMPLE, self.keys()[key]):
            why = f"a signature of {self.hsm.keys[key].label} is not by its public key"
            raise TokenRefused("keystore_invalid", why)

    @_errors()
    def is_extractable(self) -> bool:
        """Whether a key could leave the token in clear."""
        of = pkcs11.Attribute
        return any(key[of.EXTRACTABLE] or not key[of.SENSITIVE] for key in self._private)

    @_errors()
    def _sign(self, key: int, data: bytes) -> bytes:
        return bytes(self._private[key].sign(data, mechanism=pkcs11.Mechanism.EDDSA))


def _generate(session: Any, label: str) -> None:
    of = pkcs11.Attribute
    if any(session.get_objects({of.LABEL: label})):
        raise Refused("already_exists/keystore", f"the token has an object {label}; nothing is overwritten")
    curve = {of.EC_PARAMS: encode_named_curve_parameters(OID_ED25519)}
    session.create_domain_parameters(pkcs11.KeyType.EC_EDWARDS, curve, local=True).generate_keypair(
        mechanism=pkcs11.Mechanism.EC_EDWARDS_KEY_PAIR_GEN,
        store=True,
        label=label,
        id=os.urandom(ID_BYTES),
        private_template={of.SENSITIVE: True, of.EXTRACTABLE: False},
    )


def _find(session: Any, wanted: HsmKey) -> tuple[Any, HsmKey]:
    """The private key, and what is known of its pair."""
    named = {"key_type": pkcs11.KeyType.EC_EDWARDS, "label": wanted.label}
    private = session.get_key(object_class=pkcs11.ObjectClass.PRIVATE_KEY, **named)
    public = session.get_key(object_class=pkcs11.ObjectClass.PUBLIC_KEY, **named)
    # the last 32 bytes: most modules wrap them in a DER octet string
    found = HsmKey(wanted.label, private.id.hex(), public[pkcs11.Attribute.EC_POINT][-32:].hex())
    if wanted.public_key and wanted != found:
        raise TokenRefused("keystore_invalid", f"key {wanted.label} is another one than in keystore.json")
    return private, found
