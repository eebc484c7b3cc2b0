"""The values of the devnet's ledger: outputs, transactions, parameters and refusals.

Never: does I/O; decides anything.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction

OutRef = tuple[str, int]
"""(transaction id in hex, output index): names one output on the chain."""

UNSUPPORTED = "unsupported_on_devnet"
"""The rule's name when a transaction uses a part of Cardano that a payment never has."""


@dataclass(frozen=True, slots=True)
class TxOut:
    """One output. `assets` maps policy hex + name hex to units; datum and script fields are hex or None.

    `inline_datum` is the datum's CBOR; `reference_script` is the CBOR of `[language, script]`.
    """

    address: bytes
    lovelace: int
    assets: Mapping[str, int]
    datum_hash: str | None = None
    inline_datum: str | None = None
    reference_script: str | None = None


@dataclass(frozen=True, slots=True)
class Redeemer:
    """The argument of one run of a script. `purpose` 0 is spending the input at `index`, in the inputs' order.

    `data` is Plutus data. `memory` and `steps` are the execution units that the run may use.
    """

    purpose: int
    index: int
    data: object
    memory: int
    steps: int


@dataclass(frozen=True, slots=True)
class ScriptParts:
    """The parts of a transaction that only scripts need. `collateral_return` comes with its length as sent.

    `signers` are the required key hashes, `scripts` the attached Plutus V3 scripts.
    """

    data_hash: bytes | None = None
    collateral: tuple[OutRef, ...] = ()
    signers: tuple[bytes, ...] = ()
    collateral_return: tuple[TxOut, int] | None = None
    total_collateral: int | None = None
    reference_inputs: tuple[OutRef, ...] = ()
    scripts: tuple[bytes, ...] = ()
    redeemers: tuple[Redeemer, ...] = ()
    redeemers_raw: bytes = b""


@dataclass(frozen=True, slots=True)
class Tx:
    """A decoded transaction, with its bytes.

    `size_bytes` is the size that fee and size limit use: body, witnesses and auxiliary data in an array of three,
    without the isValid byte (cardano-ledger `sizeTxF`). `output_sizes_bytes` are the outputs' lengths as sent.
    """

    tx_id: str
    raw: bytes
    inputs: tuple[OutRef, ...]
    outputs: tuple[TxOut, ...]
    fee_lovelace: int
    ttl_slot: int | None
    start_slot: int | None
    network_id: int | None
    body: bytes
    witnesses: tuple[tuple[bytes, bytes], ...]
    is_valid: bool
    aux_hash: bytes | None
    aux: bytes | None
    metadata_fits: bool
    size_bytes: int
    output_sizes_bytes: tuple[int, ...]
    script_parts: ScriptParts


@dataclass(frozen=True, slots=True)
class Params:
    """Protocol parameters. The defaults are mainnet's at protocol version 10. Money is in lovelace.

    `system_start_ms` is when slot 0 began, as scripts see it. `cost_model`, of Plutus V3, has mainnet's length and
    numbers of its own.
    """

    network_id: int = 0
    min_fee_a: int = 44
    min_fee_b: int = 155_381
    coins_per_utxo_byte: int = 4_310
    max_tx_size_bytes: int = 16_384
    max_value_size_bytes: int = 5_000
    max_block_size_bytes: int = 90_112
    ref_script_lovelace_per_byte: int = 15
    ref_script_tier_bytes: int = 25_600
    ref_script_tier_factor: Fraction = Fraction(6, 5)
    max_ref_scripts_bytes: int = 204_800
    protocol_major: int = 10
    protocol_minor: int = 0
    system_start_ms: int = 0
    price_memory: Fraction = Fraction(577, 10_000)
    price_steps: Fraction = Fraction(721, 10_000_000)
    max_memory: int = 16_500_000
    max_steps: int = 10_000_000_000
    collateral_percent: int = 150
    max_collateral_inputs: int = 3
    cost_model: tuple[int, ...] = tuple(100_788 - 7 * place for place in range(297))


class LedgerError(Exception):
    """The ledger refused a transaction. `rule` is the ledger's own constructor name, or `unsupported_on_devnet`.

    `failures` has every rule that failed as (rule, detail), in the ledger's order. `rule` and `detail` are the
    first of them.
    """

    def __init__(self, rule: str, detail: str, *others: tuple[str, str]) -> None:
        super().__init__(f"{rule}: {detail}")
        self.rule = rule
        self.detail = detail
        self.failures: tuple[tuple[str, str], ...] = ((rule, detail), *others)
