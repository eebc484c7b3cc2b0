"""Another wallet with the same words: it spends UTxOs, and the books must still equal the chain."""

from contextlib import closing

from kit.agent import ADA, DEVNET, Run, World
from kit.handover import broadcast
from payagent.audit.finding import AuditFinding
from payagent.audit.reconcile import Difference, Doubt, reconcile
from payagent.audit.signed_bytes import Owner
from payagent.audit.verify import verify
from payagent.chain.address_history import History, read_history
from payagent.core.address import encode_address
from payagent.core.invoice import Output
from payagent.store.db.opening import open_read_only
from payagent.store.rows import onchain
from payagent.wallet.transaction import build, select
from payagent.wallet.utxo_index import Utxo
from sim.signing import sign

SOMEBODY = encode_address(bytes([0x60]) + bytes(28))


def submit(world: World, raw: bytes) -> None:
    assert broadcast(world, raw) == 200


def spend_elsewhere(run: Run, lovelace: int = 3 * ADA, *only: Utxo) -> str:
    """Another program with the wallet's recovery words spends some of its UTxOs."""
    world, own = run.world, run.world.account.address
    out = Output("pay_to", SOMEBODY, "lovelace", lovelace)
    slot = run.context.chain.slots.slot_at(world.clock.now_ms())  # type: ignore[union-attr]
    if only:
        plan = build(only, only[0], (out,), change=own, ttl_slot=slot + 500, network_id=DEVNET.network_id)
    else:
        plan = select(run.context.utxos, (out,), change=own, ttl_slot=slot + 500, network_id=DEVNET.network_id)
    submit(world, sign(plan, world.account.signer))
    world.block()
    return plan.tx_id


async def require_whole(run: Run) -> None:
    """Assert that the books equal the chain to the unit, verify cleanly and have every transaction."""
    world = run.world
    assert run.owned() == world.on_chain()
    with closing(open_read_only(world.folder / "ledger.db")) as conn:
        conn.execute("BEGIN")
        found = [
            told for told in verify(conn, Owner(world.account.address, DEVNET)) if isinstance(told, AuditFinding)
        ]
        assert found == []
        source = run.context.all_providers[0]
        history = await read_history(source, [world.address], 0)
        assert isinstance(history, History), history
        claims = onchain.unlisted(conn, history.movements.keys(), 0, 0)
        asked = [(claim, await source.tx(claim.tx_id)) for claim in claims]
        told = list(reconcile(conn, history, asked, history.tip.height, 0, is_forked=False))
        assert [one for one in told if isinstance(one, Difference | Doubt)] == []
