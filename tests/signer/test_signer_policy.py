"""The signer's policy: a table of refused transaction bodies, every flipped bit, and the daily cap."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import pytest
from kit.signer_bodies import ADA, CAPS, CHANGE, DAY_CAPS, FREE, GOOD, NOW_SLOT, PAID, REFUSED, TOKEN, paying
from kit.wallet import OWN, SIGNER, own_address, pay, payee

from payagent.agent.payments.lifecycle import CANCEL_TTL_S
from payagent.core.address import Address
from payagent.core.hard_caps import TTL_AHEAD_MAX_S
from payagent.core.network import SLOT_CLOCKS
from payagent.core.problems import Refused
from payagent.devnet.decode import decode_tx
from payagent.devnet.ledger_types import LedgerError
from payagent.signer.policy import Clocks, Policy, clocks_of
from payagent.wallet import cbor_write as cbor
from payagent.wallet.transaction import select, send_all
from payagent.wallet.utxo_index import Utxo, UtxoIndex

UTXO = Utxo("ab" * 32, 0, 100 * ADA)


@dataclass
class Time:
    """A clock that a test moves."""

    now_s: float = 0

    def policy(self, slot: int | None = NOW_SLOT) -> Policy:
        return Policy(OWN.raw, CAPS, DAY_CAPS, Clocks(lambda: self.now_s, lambda: slot))


def admit(body: bytes, paid: int) -> None:
    """Ask a signer that has signed nothing yet."""
    Time().policy().admit(body, paid)


ABOVE = {"limit_exceeded", "asset_not_allowed"}


@pytest.mark.parametrize("name", REFUSED)
def test_a_transaction_body_the_policy_forbids_is_refused_with_its_reason(name: str) -> None:
    body, paid, why = REFUSED[name]
    with pytest.raises(Refused) as caught:
        admit(body.raw, paid)
    assert why in caught.value.detail
    is_amount = why.endswith("with its fee") or "no limit" in why
    assert (caught.value.name in ABOVE) == is_amount
    assert is_amount or caught.value.name == "signer_refused"


def test_a_transaction_exactly_at_the_caps_is_allowed() -> None:
    admit(GOOD.raw, 1)
    admit(paying((PAID[0], 20 * ADA - GOOD.fee, ((TOKEN, 500),)), CHANGE).raw, 1)
    admit(paying(PAID, (OWN.raw, 94 * ADA, ((FREE, 2**62),))).raw, 1)
    admit(replace(GOOD, ttl_slot=NOW_SLOT + 136_800).raw, 1)
    admit(paying(CHANGE, CHANGE).raw, 0)
    admit(replace(GOOD, fee=900_000).raw, 1)


def test_a_body_may_name_the_wallets_network() -> None:
    assert GOOD.network_id is None
    admit(replace(GOOD, network_id=0).raw, 1)


def own_bodies() -> Iterator[tuple[bytes, int]]:
    """Bodies the wallet builds: a payment with splits, one with a commitment, and two of send_all."""
    for outputs, more in ((pay(3 * ADA, ADA, ADA), {}), (pay(3 * ADA), {"commitment": bytes(32)})):
        plan = select(UtxoIndex([UTXO]), outputs, change=OWN, ttl_slot=4000, network_id=0, **more)
        yield plan.body, plan.paid
    for to in (OWN, payee(3)):
        small = UtxoIndex([replace(UTXO, lovelace=15 * ADA)])
        plan = send_all(small, to, own=OWN, ttl_slot=4000, network_id=0)
        yield plan.body, plan.paid


def test_every_kind_of_transaction_the_wallet_builds_is_allowed_within_the_caps() -> None:
    paid = []
    for body, count in own_bodies():
        admit(body, count)
        paid.append(count)
    assert paid == [3, 1, 0, 1]


@pytest.mark.parametrize("change", [payee(9), own_address(1)], ids=["a stranger", "another network"])
def test_change_to_an_address_that_is_not_the_wallets_is_refused(change: Address) -> None:
    """The wallet's check would pass: it compares with a plan that has the same mistake."""
    plan = select(UtxoIndex([UTXO]), pay(3 * ADA), change=change, ttl_slot=4000, network_id=0)
    with pytest.raises(Refused, match="output 1 is change"):
        admit(plan.body, plan.paid)


def test_no_flipped_bit_gets_more_than_the_caps_past_the_signer() -> None:
    allowed = 0
    for body, paid in own_bodies():
        for bit in range(8 * len(body)):
            bent = bytearray(body)
            bent[bit // 8] ^= 1 << bit % 8
            try:
                admit(bytes(bent), paid)
            except Refused:
                continue
            allowed += 1
            witness = (
                b"\xa1\x00" + cbor.TAGGED_SET + b"\x81\x82\x58\x20" + SIGNER.public_key + b"\x58\x40" + bytes(64)
            )
            try:
                tx = decode_tx(b"\x84" + bytes(bent) + witness + b"\xf5\xf6")
            except LedgerError:
                continue
            left = [output for output in tx.outputs if output.address != OWN.raw]
            assert sum(output.lovelace for output in left) + tx.fee_lovelace <= 20 * ADA
            assert tx.fee_lovelace <= 900_000
            assert all(output.address == OWN.raw for output in tx.outputs[paid:])
    assert allowed > 1000


# The daily cap


def anchored(spends: str, ada: int, *, token: int = 0, inputs: int = 1) -> bytes:
    """A payment from its own UTxO."""
    assets = ((TOKEN, token),) if token else ()
    return replace(paying((PAID[0], ada * ADA, assets), CHANGE), spends=spends, inputs=inputs).raw


def cancel(spends: str, fee: int = 200_000, inputs: int = 1) -> bytes:
    return replace(paying(CHANGE), spends=spends, fee=fee, inputs=inputs).raw


def signed_of(policy: Policy, bodies: Iterable[tuple[bytes, int]]) -> int:
    """How many of the bodies the signer signs."""
    count = 0
    told: list[tuple[str, object]] = []
    for body, paid in bodies:
        try:
            policy.admit(body, paid)
        except Refused as refused:
            told.append((refused.code, refused.context["limit"]))
        else:
            count += 1
    assert set(told) <= {("limit_exceeded", "signed_per_day")}
    return count


def test_a_compromised_daemon_gets_no_more_than_the_daily_cap_signed() -> None:
    """Hundreds of transactions, one after the other, each within the transaction cap."""
    time = Time()
    policy = time.policy()
    bodies = [(anchored(f"{n % 256:02x}", 5, inputs=1 + n // 256), 1) for n in range(256)]
    assert signed_of(policy, bodies) == 7  # 7 times 5.2 ADA are 36.4 of 40
    time.now_s = 86_399
    assert signed_of(policy, bodies[100:]) == 0
    time.now_s = 86_400
    assert signed_of(policy, bodies[100:]) == 7


def test_the_daily_cap_is_a_rolling_24_hour_window() -> None:
    time = Time()
    policy = time.policy()
    told = []
    for hour in range(60):
        time.now_s = hour * 3600
        told.append(signed_of(policy, [(anchored(f"{hour:02x}", 5), 1)]))
    assert all(sum(told[at : at + 24]) <= 7 for at in range(60))
    assert sum(told) > 14


def test_each_token_has_its_own_daily_cap() -> None:
    policy = Time().policy()
    assert signed_of(policy, [(anchored(f"{n:02x}", 2, token=400), 1) for n in range(9)]) == 2


def test_conflicting_attempts_count_once_with_the_largest_amount() -> None:
    policy = Time().policy()
    for ada in (3, 5, 4, 5):
        policy.admit(anchored("ab", ada), 1)
    assert signed_of(policy, [(anchored(f"{n:02x}", 5), 1) for n in range(9)]) == 6
    assert signed_of(policy, [(anchored("ab", 19), 1)]) == 0


def test_a_replacement_with_more_inputs_counts_as_the_same_payment() -> None:
    policy = Time().policy()
    policy.admit(anchored("ab", 15, inputs=1), 1)
    policy.admit(anchored("ab", 15, inputs=2), 1)
    policy.admit(anchored("ab", 15, inputs=3), 1)
    assert signed_of(policy, [(anchored("cd", 15), 1)]) == 1
    assert signed_of(policy, [(anchored("ef", 15), 1)]) == 0


def test_a_transaction_that_conflicts_with_two_independent_ones_hides_neither() -> None:
    """A and C share nothing; B shares a UTxO with each. A and C can both land, so both count."""

    def spending(*indices: int) -> bytes:
        utxos = [cbor.tx_input("ab" * 32, index) for index in indices]
        whole = replace(paying((PAID[0], 15 * ADA, ()), CHANGE), inputs=0).raw
        empty = b"\xa4\x00" + cbor.TAGGED_SET + cbor.head(4, 0)
        assert whole.startswith(empty)
        return b"".join((b"\xa4\x00", cbor.TAGGED_SET, cbor.head(4, len(utxos)), *utxos, whole[len(empty) :]))

    policy = Time().policy()
    policy.admit(spending(0), 1)
    policy.admit(spending(0, 1), 1)
    policy.admit(spending(1), 1)
    assert signed_of(policy, [(spending(2), 1)]) == 0


def test_cancels_are_signed_even_when_the_daily_cap_is_reached() -> None:
    policy = Time().policy()
    bodies = [(anchored(f"{n:02x}", 19), 1) for n in range(3)]
    assert signed_of(policy, bodies) == 2
    for n in range(200):
        policy.admit(cancel(f"{n % 2:02x}"), 0)  # of signed transactions, again and again
    policy.admit(cancel("ef"), 0)  # of a transaction that an earlier process signed
    assert signed_of(policy, [(cancel(f"{n:02x}", fee=900_000), 0) for n in range(100, 200)]) == 44


def test_a_cancel_does_not_free_room_under_the_daily_cap() -> None:
    """It counts with what it conflicts with; a payment that shares no UTxO with it counts by itself."""
    policy = Time().policy()
    policy.admit(anchored("ab", 19, inputs=2), 1)
    policy.admit(cancel("ab", inputs=1), 0)
    assert signed_of(policy, [(anchored("ab", 19, inputs=1), 1)]) == 1
    assert signed_of(policy, [(anchored("cd", 19), 1)]) == 1
    assert signed_of(policy, [(anchored("ef", 19), 1)]) == 0


def test_the_signer_knows_the_slot_only_on_networks_with_known_slots() -> None:
    clocks = clocks_of(SLOT_CLOCKS["preprod"], lambda: 0.0, lambda: 1_655_769_600.9 + 60)
    assert clocks.slot() == 86_460
    assert clocks_of(None, lambda: 0.0, lambda: 1.0).slot() is None
    Time().policy(slot=None).admit(replace(GOOD, ttl_slot=10**9).raw, 1)


def test_the_agents_longest_ttl_is_within_the_signers_limit() -> None:
    assert CANCEL_TTL_S + 3600 <= TTL_AHEAD_MAX_S
