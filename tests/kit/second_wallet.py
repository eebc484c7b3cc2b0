"""Another program with the recovery words of a running daemon's wallet."""

from kit.cli import Shop, until
from payagent.core.address import encode_address
from payagent.core.invoice import Output
from payagent.core.network import NETWORKS
from payagent.wallet.keys import derive, seed_from_words
from payagent.wallet.transaction import select
from payagent.wallet.utxo_index import Utxo, UtxoIndex
from sim.signing import sign

DEVNET = NETWORKS["devnet"]
OUT = Output("pay_to", encode_address(bytes([0x60]) + bytes(28)), "lovelace", 3_000_000)


def spend_elsewhere(shop: Shop) -> str:
    """Another program with the wallet's words sends some of its money away, and the daemon sees it."""
    account, chain = derive(seed_from_words(shop.words), DEVNET), shop.devnet.chain_url
    slot = shop.http.get(f"{chain}/blocks/latest").json()["slot"]
    rows = shop.payagent("wallet", "utxos").json["utxos"]
    utxos = UtxoIndex(
        Utxo(row["ref"].partition("#")[0], int(row["ref"].partition("#")[2]), int(row["lovelace"]), ())
        for row in rows
        if row["state"] == "available" and not row["assets"]
    )
    plan = select(utxos, (OUT,), change=account.address, ttl_slot=slot + 500, network_id=DEVNET.network_id)
    sent = shop.http.post(
        f"{chain}/tx/submit", content=sign(plan, account.signer), headers={"Content-Type": "application/cbor"}
    )
    assert sent.status_code == 200, sent.text
    until(lambda: plan.tx_id in frozen_by(shop), "the daemon does not see it")
    return plan.tx_id


def frozen_by(shop: Shop) -> list[str]:
    told: list[str] = shop.payagent("wallet", "show").json["frozen_by"]
    return told
