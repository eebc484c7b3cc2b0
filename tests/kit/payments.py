"""Lost, replaced and cancelled payments: steps that lead there, and checks of memory, books and receipts."""

from dataclasses import dataclass
from itertools import pairwise

from kit.agent import DEVNET, Run, World
from payagent.api.models.receipt import receipt_of
from payagent.audit.finding import AuditFinding
from payagent.audit.receipt import check_receipt
from payagent.audit.receipt_form import read_receipt
from payagent.audit.signed_bytes import Owner
from payagent.audit.verify import verify
from payagent.core.address import Address
from payagent.core.aggregate import PaymentRow
from payagent.core.payment.machine import State
from payagent.core.problems import Refused
from payagent.core.strict_json import dumps
from payagent.store.rows import attempts_and_utxos as queries
from payagent.store.rows import payments
from payagent.wallet.keys import Signer, derive, seed_from_words
from sim.forks import mint_fork_block

TTL_S = 1_800
LONG_S = 7_200
"""A validity of an invoice that outlives the longest attempt."""


def assert_memory(run: Run) -> None:
    """Assert that coin selection may take exactly the UTxOs the database has as available."""
    assert run.selectable() == {
        utxo.ref for utxo in queries.free_utxos(run.context.conn, run.context.config.account)
    }


async def lose(world: World, run: Run, message: str = "hello") -> PaymentRow:
    """A payment whose transaction the provider accepts and then drops."""
    world.fault("submit", "drop")
    await run.run_pass()
    row = await run.pay(message)
    assert (row.state, world.waiting()) == (State.IN_FLIGHT, [])
    return row


async def pass_time_of(world: World, run: Run, seconds: int) -> None:
    """After the given time, make a block and run a pass; later submissions arrive."""
    world.control("faults", clear=True)
    world.clock.ahead_ms += seconds * 1000
    await run.settle_down()


async def wait_for_void(world: World, run: Run) -> None:
    """Make blocks on top of the cancel, with passes a minute apart."""
    for _ in range(6):
        world.clock.ahead_ms += 61_000
        await run.settle_down()


def height(world: World) -> int:
    found: int = world.devnet.run(lambda devnet: devnet.chain.tip.height)
    return found


def fork_with(world: World, at_height: int, *raws: bytes) -> None:
    """Switch to a longer fork whose next block has these transactions."""
    depth = height(world) - at_height
    world.control("rollback", depth=depth)
    world.devnet.run(lambda devnet: devnet.chain.mempool.clear())
    slot: int = world.devnet.run(lambda devnet: devnet.chain.tip.slot)
    world.devnet.run(lambda devnet: mint_fork_block(devnet.chain, raws, slot))
    world.block(depth + 1)


def assert_sound(world: World, run: Run) -> None:
    """Assert that memory equals the database, the books verify and each receipt is consistent."""
    assert_memory(run)
    owner = Owner(world.account.address, DEVNET)
    with run.context.readers.snapshot() as conn:
        assert [one for one in verify(conn, owner) if isinstance(one, AuditFinding)] == []
        for row in payments.payments_in(conn, list(State)):
            receipt = read_receipt(dumps(receipt_of(conn, row, run.context.config).model_dump()).encode())
            assert list(check_receipt(receipt)) == []


def assert_at_rest(world: World, run: Run) -> None:
    """As `assert_sound`, with nothing in flight: the books equal the chain."""
    assert_sound(world, run)
    assert run.owned() == world.on_chain()
    assert "held" not in run.books()


def attempts(run: Run, row: PaymentRow) -> list[queries.AttemptRow]:
    return queries.attempts(run.context.conn, row.id)


@dataclass
class BadSigner:
    """A signer that fails or signs something else, until it is repaired."""

    good: Signer
    trouble: str = "fails"

    @property
    def public_key(self) -> bytes:
        return self.good.public_key

    @property
    def payment_key_hash(self) -> bytes:
        return self.good.payment_key_hash

    def sign(self, body: bytes, paid: int) -> bytes:
        if self.trouble == "fails":
            raise OSError("the signer is gone")
        if self.trouble == "refuses":
            raise Refused("limit_exceeded", "too much in a day", limit="signed_per_day")
        return self.good.sign(body if self.trouble == "mended" else body[::-1], paid)


def somebody_else(world: World) -> Address:
    return derive(seed_from_words("zoo " * 23 + "vote"), world.terms.network).address


def is_sound(run: Run) -> bool:
    told = verify(run.context.conn, Owner(run.context.config.own, DEVNET))
    return [one for one in told if isinstance(one, AuditFinding)] == []


async def family(world: World, run: Run, *names: str) -> list[PaymentRow]:
    """Payments that each spend the change of the previous one; no provider has any of them."""
    world.fault("submit", "drop")
    await run.run_pass()
    rows = [await run.pay(name) for name in names]
    for parent, child in pairwise(rows):
        assert (child.nonce_utxo or "").startswith(parent.attempt.tx_id or "-")
    return rows


async def replace_parent(world: World, run: Run) -> list[PaymentRow]:
    """Replace the parent, so that the change its child and grandchild spend can never exist."""
    world.settings(timeout=LONG_S)
    rows = await family(world, run, "parent", "child", "grandchild")
    await pass_time_of(world, run, TTL_S - 60)
    await pass_time_of(world, run, 120)
    return rows
