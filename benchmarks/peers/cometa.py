"""libcardano-c through its Python binding: `TxBuilder`, with its own choice of coins."""

from collections.abc import Callable
from typing import Any

from cometa import (
    Address,
    Ed25519PrivateKey,
    ProtocolParameters,
    SlotConfig,
    TransactionInput,
    TransactionOutput,
    TxBuilder,
    Utxo,
    UtxoList,
    Value,
    VkeyWitness,
    VkeyWitnessSet,
)

from benchmarks.peers.repeat import serve


def prepare(job: dict[str, Any]) -> Callable[[], str]:
    parameters, slots = _parameters(job["parameters"]), SlotConfig.preview()
    change = Address.from_string(job["change"])
    utxos = UtxoList()
    for utxo in job["coins"]:
        spent = TransactionInput.from_hex(utxo["tx_id"], utxo["index"])
        utxos.add(Utxo.new(spent, _output(change, utxo)))
    payments = [(Address.from_string(output["address"]), _value(output)) for output in job["outputs"]]
    key = Ed25519PrivateKey.from_extended_bytes(bytes.fromhex(job["key"]))
    public_key = key.get_public_key().to_bytes()

    def build() -> str:
        builder = TxBuilder(parameters, slots).set_utxos(utxos).set_change_address(change)
        for address, value in payments:
            builder.send_value(address, value)
        tx = builder.set_valid_until(slot=job["ttl_slot"]).build()
        witness = VkeyWitness.new(public_key, key.sign(tx.id.to_bytes()).to_bytes())
        tx.apply_vkey_witnesses(VkeyWitnessSet.from_list([witness]))
        return str(tx.serialize_to_cbor())

    return build


def _value(held: dict[str, Any]) -> Value:
    value = Value.from_coin(held["lovelace"])
    for name, units in held["assets"]:
        value.add_asset(bytes.fromhex(name[:56]), bytes.fromhex(name[56:]), units)
    return value


def _output(address: Address, held: dict[str, Any]) -> TransactionOutput:
    output = TransactionOutput.new(address, held["lovelace"])
    output.value = _value(held)
    return output


def _parameters(given: dict[str, int]) -> ProtocolParameters:
    parameters = ProtocolParameters.new()
    parameters.min_fee_a, parameters.min_fee_b = given["min_fee_a"], given["min_fee_b"]
    parameters.ada_per_utxo_byte = given["coins_per_utxo_byte"]
    parameters.max_tx_size, parameters.max_value_size = given["max_tx_size"], given["max_value_size"]
    return parameters


if __name__ == "__main__":
    serve("biglup-cometa", prepare)
