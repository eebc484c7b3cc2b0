"""Blocks of another producer, which a fork puts in place of those that a rollback undid.

Never: makes a block that the devnet's ledger would refuse.
"""

from collections.abc import Sequence

from payagent.devnet.ledger import Chain, DevnetBlock, LedgerError, Tx, apply_tx, check_tx, decode_tx


def mint_fork_block(chain: Chain, txs: Sequence[bytes], slot: int | None) -> DevnetBlock:
    """Make another producer's block with the given transactions, at a slot from the tip's to the current.

    Raises `LedgerError`, with nothing changed, if a transaction is not valid there, and `ValueError` for a slot
    outside that range.
    """
    at_slot = chain.slot if slot is None else slot
    if not chain.tip.slot <= at_slot <= chain.slot:
        raise ValueError(f"slot {at_slot} is not within {chain.tip.slot}..{chain.slot}")
    utxos = dict(chain.utxos)
    chosen = []
    for raw in txs:
        tx = decode_tx(raw)
        if tx.tx_id not in chain.faucet_ids:
            check_tx(tx, utxos, at_slot, chain.params)
        elif _is_in_block(chain, tx) or (tx.tx_id, 0) in utxos:
            raise LedgerError("BadInputsUTxO", "this faucet transaction is in the chain already")
        apply_tx(tx, utxos)
        chosen.append(tx)
    return chain.extend(at_slot, chosen)


def return_deposit(chain: Chain, tx: Tx) -> None:
    """Put a faucet transaction whose block was undone back into the mempool."""
    if tx.tx_id in chain.faucet_ids and chain.tx(tx.tx_id) is None:
        chain.refill([*chain.mempool.values(), tx])


def _is_in_block(chain: Chain, tx: Tx) -> bool:
    found = chain.tx(tx.tx_id)
    return found is not None and found[1] is not None
