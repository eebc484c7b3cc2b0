"""pycardano's own builder, as its guide has it: coins, outputs, `build_and_sign`."""

from collections.abc import Callable
from typing import Any

import pycardano

from benchmarks.peers.repeat import serve


def prepare(job: dict[str, Any]) -> Callable[[], str]:
    own = pycardano.Address.from_primitive(job["change"])
    context = _context(job["parameters"])
    utxos = [
        pycardano.UTxO(
            pycardano.TransactionInput(pycardano.TransactionId(bytes.fromhex(utxo["tx_id"])), utxo["index"]),
            pycardano.TransactionOutput(own, _value(utxo)),
        )
        for utxo in job["coins"]
    ]
    payments = [
        pycardano.TransactionOutput(pycardano.Address.from_primitive(output["address"]), _value(output))
        for output in job["outputs"]
    ]
    # key, public key, chain code: the last is for deriving further keys, which nobody does here
    key = bytes.fromhex(job["key"]) + bytes.fromhex(job["public_key"]) + bytes(32)
    extended = pycardano.PaymentExtendedSigningKey(key)

    def build() -> str:
        builder = pycardano.TransactionBuilder(context)
        builder.potential_inputs.extend(utxos)
        for payment in payments:
            builder.add_output(payment)
        builder.ttl = job["ttl_slot"]
        return str(builder.build_and_sign([extended], own).to_cbor_hex())

    return build


def _value(held: dict[str, Any]) -> Any:
    policies: dict[bytes, dict[bytes, int]] = {}
    for name, units in held["assets"]:
        policies.setdefault(bytes.fromhex(name[:56]), {})[bytes.fromhex(name[56:])] = units
    if not policies:
        return held["lovelace"]
    return pycardano.Value(held["lovelace"], pycardano.MultiAsset.from_primitive(policies))


def _context(given: dict[str, int]) -> Any:
    """A chain that is asked for nothing but the parameters that a payment meets."""
    parameters = dict.fromkeys(pycardano.ProtocolParameters.__dataclass_fields__, 0) | {
        "min_fee_coefficient": given["min_fee_a"],
        "min_fee_constant": given["min_fee_b"],
        "coins_per_utxo_byte": given["coins_per_utxo_byte"],
        "max_tx_size": given["max_tx_size"],
        "max_val_size": given["max_value_size"],
        "maximum_reference_scripts_size": None,
    }

    class Context(pycardano.ChainContext):  # type: ignore[misc]
        protocol_param = pycardano.ProtocolParameters(**parameters)
        network, epoch, last_block_slot, genesis_param = pycardano.Network.TESTNET, 1, 0, None

    return Context()


if __name__ == "__main__":
    serve("pycardano", prepare)
