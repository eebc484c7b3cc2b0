"""The wallet's transactions are accepted by scalus, an independent ledger, and by the devnet's ledger. Two other
programs, the Evolution SDK and pycardano, decode what the wallet meant, and write the same bytes again.

Random wallets (1 to 2,000 UTxOs, up to 60 assets in one, boundary quantities) and random invoices, singly and
chained, each transaction spending the change of the previous one.
"""

import random
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from kit.effort import pick
from kit.wallet import (
    OWN,
    PARAMETERS,
    SIGNER,
    TTL_SLOT,
    own_address,
    pay,
    payee,
    random_outputs,
    random_wallet,
    wallet_size,
)
from ledger_check.decoders import Decoded, DecodedOutput, evolution, needs_evolution, pycardano
from ledger_check.scalus import Scalus, needs_scalus

from payagent.core.invoice import Output
from payagent.core.problems import Refused
from payagent.devnet.ledger import Chain, LedgerError, Params, TxOut, check_tx, decode_tx
from payagent.wallet.transaction import TxPlan, check, min_lovelace, select, send_all, split_outputs
from payagent.wallet.utxo_index import Utxo, UtxoIndex
from sim.signing import sign

FRAME: dict[str, Any] = {"change": OWN, "ttl_slot": TTL_SLOT, "network_id": 0}
SINGLE, CHAINS, LINKS = pick(200, 1700), pick(4, 20), 20
DECODED = pick(4, 200)
Case = tuple[TxPlan, bytes]


def signed(plan: TxPlan) -> bytes:
    raw = sign(plan, SIGNER)
    check(raw, plan, SIGNER.public_key)
    return raw


def singles(seed: int, count: int) -> Iterator[Case]:
    """Payments by wallets of all sizes, every fifth with a commitment, without those they cannot pay."""
    rnd, made = random.Random(seed), 0
    while made < count:
        wallet = random_wallet(rnd, wallet_size(rnd))
        utxos = UtxoIndex(wallet)
        for _ in range(3):
            try:
                commitment = rnd.randbytes(32) if made % 5 == 0 else None
                plan = select(utxos, random_outputs(rnd, wallet), commitment=commitment, **FRAME)
            except Refused:
                continue
            made += 1
            yield plan, signed(plan)


def self_transfers(seed: int) -> Iterator[Case]:
    rnd = random.Random(seed)
    for _ in range(20):
        utxos = UtxoIndex(random_wallet(rnd, wallet_size(rnd)))
        try:
            for plan in (
                send_all(utxos, OWN, own=OWN, ttl_slot=TTL_SLOT, network_id=0),
                select(utxos, split_outputs(OWN, rnd.randrange(1, 30), 1_000_000), **FRAME),
            ):
                yield plan, signed(plan)
        except Refused:
            continue


def chain(rnd: random.Random, wallet: list[Utxo], links: int) -> Iterator[Case]:
    """Payments in a row from one wallet whose change can be spent at once."""
    utxos = UtxoIndex(wallet)
    for _ in range(links):
        plan = select(utxos, random_share(rnd, utxos), **FRAME)
        yield plan, signed(plan)
        for utxo in plan.inputs:
            utxos.remove(utxo.ref)
        for index, output in enumerate(plan.outputs):
            if output.role == "change":
                utxos.add(Utxo(plan.tx_id, index, output.lovelace, output.assets))


def mainnet(count: int) -> Iterator[Case]:
    """Payments from and to addresses of mainnet."""
    utxos = UtxoIndex([Utxo("00" * 32, 0, 500_000_000)])
    for number in range(count):
        outputs = [Output("pay_to", payee(number, network_id=1), "lovelace", 2_000_000 + number)]
        plan = select(utxos, outputs, change=own_address(1), ttl_slot=TTL_SLOT, network_id=1)
        yield plan, signed(plan)


def random_share(rnd: random.Random, utxos: UtxoIndex) -> list:  # type: ignore[type-arg]
    names = [name for name in utxos.totals if name != "lovelace" and utxos.totals[name] > 3]
    if names and rnd.randrange(2):
        name = rnd.choice(sorted(names))
        return pay(utxos.totals[name] // 2, 1, name=name)
    return pay(rnd.randrange(1_000_000, 3_000_000), 1_000_000)


def chain_wallets(seed: int) -> Iterator[tuple[random.Random, list[Utxo]]]:
    rnd = random.Random(seed)
    for _ in range(CHAINS):
        wallet = random_wallet(rnd, rnd.choice([1, 2, 5, 40]))
        wallet.append(Utxo(rnd.randbytes(32).hex(), 0, 500_000_000))
        yield rnd, wallet


def unspent(utxos: Iterator[Utxo] | tuple[Utxo, ...] | list[Utxo]) -> dict[tuple[str, int], TxOut]:
    return {(utxo.tx_id, utxo.index): TxOut(OWN.raw, utxo.lovelace, dict(utxo.assets)) for utxo in utxos}


@pytest.fixture(scope="module")
def scalus() -> Iterator[Scalus]:
    with Scalus() as ledger:
        yield ledger


@needs_scalus
def test_scalus_accepts_every_single_payment(scalus: Scalus) -> None:
    cases = [*singles(1, SINGLE), *self_transfers(1)]
    assert len(cases) >= SINGLE
    for plan, raw in cases:
        assert scalus.validate(raw, unspent(plan.inputs), TTL_SLOT - 1, 0) is None, raw.hex()


@needs_scalus
def test_scalus_accepts_every_chain_of_payments(scalus: Scalus) -> None:
    links = 0
    for rnd, wallet in chain_wallets(2):
        scalus.open(unspent(wallet), TTL_SLOT - 1, 0)
        for _, raw in chain(rnd, wallet, LINKS):
            assert scalus.submit(raw) is None, raw.hex()
            links += 1
        assert scalus.submit(raw) is not None
    assert links == CHAINS * LINKS


@needs_scalus
def test_scalus_refuses_wrong_transactions(scalus: Scalus) -> None:
    """A control: one lovelace too much, a flipped bit in the signature and a passed TTL are refused."""
    for plan, raw in singles(3, 5):
        short = unspent(plan.inputs)
        first = next(iter(short))
        short[first] = TxOut(OWN.raw, short[first].lovelace + 1, short[first].assets)
        assert scalus.validate(raw, short, TTL_SLOT - 1, 0) is not None
        assert scalus.validate(raw, unspent(plan.inputs), TTL_SLOT, 0) is not None
        bent = raw[:-3] + bytes([raw[-3] ^ 1]) + raw[-2:]
        assert scalus.validate(bent, unspent(plan.inputs), TTL_SLOT - 1, 0) is not None


def meant(plan: TxPlan, raw: bytes) -> Decoded:
    """What any program must read in the transaction of a plan."""
    return Decoded(
        tx_id=plan.tx_id,
        signers=(SIGNER.public_key.hex(),),
        networks=frozenset((plan.network_id,)),
        fee=plan.fee_lovelace,
        minimum_fee=PARAMETERS.min_fee_a * len(raw) + PARAMETERS.min_fee_b,
        outputs=tuple(
            DecodedOutput(
                address=one.address.hex(),
                lovelace=one.lovelace,
                assets=dict(one.assets),
                minimum=min_lovelace(one.address, dict(one.assets), PARAMETERS),
            )
            for one in plan.outputs
        ),
        encoded=raw,
    )


@needs_evolution
def test_other_programs_decode_what_the_wallet_meant() -> None:
    """As a control, one of the transactions comes again with a wrong signature."""
    rnd, wallet = next(chain_wallets(6))
    transfers = [*self_transfers(6)] if DECODED > 100 else []
    cases = [*singles(6, DECODED), *transfers, *mainnet(1), *chain(rnd, wallet, 2)]
    wanted = [meant(plan, raw) for plan, raw in cases]
    raw = wanted[-1].encoded
    wanted.append(replace(wanted[-1], signers=(), encoded=raw[:-3] + bytes([raw[-3] ^ 1]) + raw[-2:]))
    assert evolution(one.encoded for one in wanted) == wanted
    assert [pycardano(one.encoded) for one in wanted] == wanted
    assert all(one.fee >= one.minimum_fee for one in wanted)
    assert all(output.lovelace >= output.minimum for one in wanted for output in one.outputs)


def test_the_devnet_accepts_every_single_payment() -> None:
    for plan, raw in [*singles(4, SINGLE), *self_transfers(4)]:
        tx = decode_tx(raw)
        assert tx.tx_id == plan.tx_id
        check_tx(tx, unspent(plan.inputs), TTL_SLOT - 1, Params())


def test_the_devnet_accepts_every_chain_of_payments_only_once() -> None:
    rnd = random.Random(5)
    for _ in range(CHAINS):
        devnet, utxos = Chain(Params(), 0, TTL_SLOT - 100), []
        for utxo in [*random_wallet(rnd, 12), Utxo("00" * 32, 0, 500_000_000)]:
            tx_id = devnet.faucet(OWN.raw, utxo.lovelace, dict(utxo.assets))
            utxos.append(Utxo(tx_id, 0, utxo.lovelace, utxo.assets))
        devnet.make_block()
        raws = [raw for _, raw in chain(rnd, utxos, LINKS) if devnet.submit(raw)]
        assert len(raws) == LINKS
        devnet.make_block()
        for raw in raws:
            with pytest.raises(LedgerError):
                devnet.submit(raw)
