"""Coin selection: every feasible payment is built with exact outputs, and nothing is burnt."""

import random
from typing import Any

import cbor2
import pytest
from kit.effort import pick
from kit.wallet import (
    ASSETS,
    OWN,
    PARAMETERS,
    SIGNER,
    TTL_SLOT,
    pay,
    payee,
    pure_utxo,
    random_outputs,
    random_wallet,
    wallet_size,
)
from wallet import reference

from payagent.core.bounds import SPLIT_COUNT_MAX
from payagent.core.invoice import Output
from payagent.core.problems import Refused
from payagent.wallet.transaction import (
    TxPlan,
    build,
    check,
    min_lovelace,
    select,
    send_all,
    smallest_of,
    split_outputs,
)
from payagent.wallet.utxo_index import Utxo, UtxoIndex
from sim.signing import sign

ADA = 1_000_000
LEAST = 969_750  # min-ADA of an ADA-only output to a base address
FRAME: dict[str, Any] = {"change": OWN, "ttl_slot": TTL_SLOT, "network_id": 0}


def chosen(utxos: list[Utxo], outputs: list[Output], **more: object) -> TxPlan:
    """Select, sign and check, as for a payment."""
    plan = select(UtxoIndex(utxos), outputs, **{**FRAME, **more})
    check(sign(plan, SIGNER), plan, SIGNER.public_key)
    return plan


def refusal(utxos: list[Utxo], outputs: list[Output], **more: object) -> Refused:
    with pytest.raises(Refused) as caught:
        chosen(utxos, outputs, **more)
    return caught.value


def utxo(lovelace: int, number: int = 0, **assets: int) -> Utxo:
    named = tuple((ASSETS[int(key[1:])], units) for key, units in assets.items())
    return Utxo(f"{number:064x}", number % 7, lovelace, named)


def fee_of(plan: TxPlan) -> int:
    return 155_381 + 44 * plan.size


def test_outputs_are_exact_and_in_order_with_the_change_last() -> None:
    asked = pay(10 * ADA, 2 * ADA, 1 * ADA)
    plan = chosen([utxo(50 * ADA)], asked)
    assert [(o.role, o.address, o.lovelace) for o in plan.outputs[:3]] == [
        (o.role, o.address.raw, o.units) for o in asked
    ]
    assert [(o.role, o.address) for o in plan.outputs[3:]] == [("change", OWN.raw)]
    assert plan.fee_lovelace == fee_of(plan)
    assert plan.spend == {"lovelace": 13 * ADA + plan.fee_lovelace}


def test_an_output_to_our_own_address_is_never_merged_with_the_change() -> None:
    asked = [Output("pay_to", payee(1), "lovelace", 2 * ADA), Output("change", OWN, "lovelace", 3 * ADA)]
    plan = chosen([utxo(50 * ADA)], asked)
    assert [o.lovelace for o in plan.outputs[:2]] == [2 * ADA, 3 * ADA]
    assert len(plan.change) == 2


def test_a_token_output_carries_min_ada_which_counts_as_spend() -> None:
    name = ASSETS[40]
    plan = chosen([utxo(5 * ADA, 1, a40=1000), utxo(20 * ADA, 2)], pay(600, 100, name=name))
    riding = [
        min_lovelace(payee(0).raw, {name: 600}, PARAMETERS),
        min_lovelace(payee(1).raw, {name: 100}, PARAMETERS),
    ]
    assert [o.lovelace for o in plan.outputs[:2]] == riding
    assert plan.spend == {"lovelace": sum(riding) + plan.fee_lovelace, name: 700}
    assert plan.change[0].assets == ((name, 300),)


@pytest.mark.parametrize("short", [1, 1000])
def test_an_output_below_min_ada_is_refused(short: int) -> None:
    chosen([utxo(50 * ADA)], pay(LEAST))
    error = refusal([utxo(50 * ADA)], pay(LEAST - short))
    assert (error.name, error.context) == ("invoice_invalid/below_min_ada", {"minimum": str(LEAST)})


@pytest.mark.parametrize("units", [0, -1, 2**63])
def test_an_impossible_amount_is_refused(units: int) -> None:
    assert refusal([utxo(50 * ADA)], pay(units)).name == "invoice_invalid/amount_range"


def test_the_smallest_utxo_that_can_pay_alone_is_spent_as_nonce_utxo() -> None:
    wallet = [utxo(5 * ADA, 1), utxo(12 * ADA, 2), utxo(11 * ADA, 3), utxo(900 * ADA, 4), utxo(11 * ADA, 5, a1=7)]
    plan = chosen(wallet, pay(9 * ADA))
    assert plan.inputs == (wallet[2],)
    assert plan.nonce_utxo == wallet[2]


def test_a_token_is_paid_from_the_smallest_utxo_with_enough_of_it() -> None:
    wallet = [utxo(9 * ADA, 1, a1=50), utxo(9 * ADA, 2, a1=500), utxo(9 * ADA, 3, a1=5000), utxo(100 * ADA, 4)]
    plan = chosen(wallet, pay(400, name=ASSETS[1]))
    assert plan.inputs == (wallet[1],)


def test_an_ada_only_utxo_tops_up_a_token_utxo_and_is_the_nonce_utxo() -> None:
    wallet = [utxo(1_200_000, 1, a1=500), utxo(3 * ADA, 2), utxo(100 * ADA, 3)]
    plan = chosen(wallet, pay(400, name=ASSETS[1]))
    assert plan.inputs == (wallet[0], wallet[1])
    assert plan.nonce_utxo == wallet[1]


def test_the_selection_does_not_depend_on_the_order_of_the_utxos() -> None:
    rnd = random.Random(5)
    wallet, ids = random_wallet(rnd, 60), set()
    outputs = pay(sum(c.lovelace for c in wallet) // 3)
    for _ in range(5):
        rnd.shuffle(wallet)
        ids.add(chosen(wallet, outputs).tx_id)
    assert len(ids) == 1


def test_a_given_nonce_utxo_is_spent_even_if_it_is_not_available() -> None:
    nonce_utxo, free = utxo(2 * ADA, 1), [utxo(2 * ADA, 2), utxo(30 * ADA, 3)]
    for wallet in (free, [nonce_utxo, *free]):
        plan = chosen(wallet, pay(20 * ADA), nonce_utxo=nonce_utxo)
        assert plan.nonce_utxo == nonce_utxo
        assert set(plan.inputs) == {nonce_utxo, free[1]}
    assert chosen(free, pay(1_000_000), nonce_utxo=utxo(9 * ADA, 4)).inputs == (utxo(9 * ADA, 4),)


def test_the_nonce_utxo_is_the_smallest_ada_only_input() -> None:
    wallet = [utxo(9 * ADA, 1), utxo(3 * ADA, 5), utxo(2 * ADA, 2, a1=5), utxo(3 * ADA, 4), utxo(3 * ADA, 6)]
    for line in (wallet, wallet[::-1]):
        assert smallest_of(line) == wallet[3]
    assert smallest_of(wallet[2:3]) == wallet[2]


def test_a_rebuild_gives_the_same_bytes_and_a_nonce_utxo_outside_the_inputs_is_refused() -> None:
    plan = chosen([Utxo(f"{n % 3:064x}", n, 5 * ADA) for n in range(9)], pay(40 * ADA))
    assert [(int(c.tx_id), c.index) for c in plan.inputs] == sorted((n % 3, n) for n in range(9))
    again = build(list(reversed(plan.inputs)), plan.nonce_utxo, plan.asked, **FRAME)
    assert again == plan
    assert sign(again, SIGNER) == sign(plan, SIGNER)
    with pytest.raises(ValueError, match="not among the inputs"):
        build(plan.inputs, utxo(1 * ADA, 99), plan.asked, **FRAME)


# --- change: never dust, never burnt ---

ONE_IN_ONE_OUT = 155_381 + 44 * 231  # the fee of one input, one output to a base address and no change


def test_an_exact_balance_pays_without_change() -> None:
    plan = chosen([utxo(3 * ADA + ONE_IN_ONE_OUT)], pay(3 * ADA))
    assert plan.change == ()
    assert plan.fee_lovelace == ONE_IN_ONE_OUT == fee_of(plan)


def test_named_utxos_pay_when_they_suffice_to_the_unit() -> None:
    least = 3 * ADA + ONE_IN_ONE_OUT + 44 * 65 + LEAST
    for lovelace, change in ((3 * ADA + ONE_IN_ONE_OUT, []), (least, [LEAST])):
        spent = utxo(lovelace)
        assert [o.lovelace for o in build([spent], spent, pay(3 * ADA), **FRAME).change] == change
        assert [o.lovelace for o in chosen([], pay(3 * ADA), nonce_utxo=spent).change] == change
    short, tokens = utxo(least - 1), utxo(50 * ADA, 1, a1=5)
    for spent, outputs, missing in (
        (short, pay(3 * ADA), {"asset": "lovelace", "shortfall": "1"}),
        (tokens, pay(7, name=ASSETS[1]), {"asset": ASSETS[1], "shortfall": "2"}),
    ):
        with pytest.raises(Refused) as caught:
            build([spent], spent, outputs, **FRAME)
        assert (caught.value.name, caught.value.context) == ("not_enough_funds", missing)


@pytest.mark.parametrize("count", [22, 23, 24])
def test_an_exact_balance_is_found_when_the_output_count_takes_one_more_byte(count: int) -> None:
    fee_lovelace = ONE_IN_ONE_OUT + 44 * (65 * (count - 1) + (count > 23))
    exact = utxo(count * ADA + fee_lovelace)
    plan = chosen([exact, utxo(500 * ADA, 1)], pay(*[ADA] * count))
    assert (plan.inputs, plan.change, plan.fee_lovelace) == ((exact,), (), fee_lovelace)


def test_tokens_are_never_lost_when_the_ada_leaves_no_change() -> None:
    laden, spare = utxo(3 * ADA + ONE_IN_ONE_OUT, 1, a1=5), utxo(2 * ADA, 2)
    for attempt in (chosen, lambda utxos, asked: build(utxos, utxos[0], asked, **FRAME)):
        with pytest.raises(Refused) as caught:
            attempt([laden], pay(3 * ADA))
        assert caught.value.name == "not_enough_funds"
    plan = build([laden, spare], laden, pay(3 * ADA), **FRAME)
    assert plan == chosen([laden], pay(3 * ADA), nonce_utxo=spare)._replace(nonce_utxo=laden)
    assert [o.assets for o in plan.change] == [((ASSETS[1], 5),)]


@pytest.mark.parametrize("left", [1, 175, 176, 177, 100_000, LEAST, LEAST + 44 * 65 - 1])
def test_ada_too_small_for_change_is_not_burnt_as_a_fee(left: int) -> None:
    error = refusal([utxo(3 * ADA + ONE_IN_ONE_OUT + left)], pay(3 * ADA))
    assert error.name == "not_enough_funds"
    output_fee = 44 * 65
    assert error.context == {"asset": "lovelace", "shortfall": str(LEAST + output_fee - left)}
    spare = utxo(1_500_000, 9)
    plan = chosen([utxo(3 * ADA + ONE_IN_ONE_OUT + left), spare], pay(3 * ADA))
    assert spare in plan.inputs
    assert plan.change[0].lovelace >= LEAST


@pytest.mark.parametrize("left_out", [1, 2, 3])
@pytest.mark.parametrize("index", [0, 30, 300])
def test_an_exact_balance_is_found_by_leaving_out_one_utxo(left_out: int, index: int) -> None:
    """All UTxOs together leave too little for change; without one of them nothing is left over."""
    amounts = (5_000_000, 972_000, 970_000, 970_000)
    wallet = [Utxo(f"{n:064x}", index, lovelace) for n, lovelace in enumerate(amounts)]
    spent = [c for n, c in enumerate(wallet) if n != left_out]
    fee_lovelace = ONE_IN_ONE_OUT + 44 * (2 * 36 + 3 * (len(cbor2.dumps(index)) - 1))
    plan = chosen(wallet, pay(sum(c.lovelace for c in spent) - fee_lovelace))
    assert sum(c.lovelace for c in plan.inputs) == sum(c.lovelace for c in spent)
    assert plan.change == ()
    assert plan.fee_lovelace == fee_lovelace


def test_a_given_nonce_utxo_is_never_left_out() -> None:
    wallet = [utxo(lovelace, n) for n, lovelace in enumerate((5_000_000, 972_000, 970_000, 970_001))]
    without_nonce_utxo = sum(c.lovelace for c in wallet[:3]) - ONE_IN_ONE_OUT - 44 * 72
    assert refusal(wallet, pay(without_nonce_utxo), nonce_utxo=wallet[3]).name == "not_enough_funds"
    assert wallet[3] not in chosen(wallet, pay(without_nonce_utxo)).inputs


def test_the_smallest_change_is_exactly_min_ada() -> None:
    plan = chosen([utxo(3 * ADA + ONE_IN_ONE_OUT + 44 * 65 + LEAST)], pay(3 * ADA))
    assert [o.lovelace for o in plan.change] == [LEAST]


def test_the_fee_accounts_for_a_high_output_index() -> None:
    def high(lovelace: int) -> Utxo:
        return Utxo("ee" * 32, 300, lovelace)

    exact = high(3 * ADA + ONE_IN_ONE_OUT + 88)
    assert chosen([exact, utxo(50 * ADA)], pay(3 * ADA)).inputs == (exact,)
    least = 3 * ADA + ONE_IN_ONE_OUT + 44 * 65 + LEAST
    assert chosen([high(least + 88), utxo(50 * ADA)], pay(3 * ADA)).inputs == (high(least + 88),)
    assert chosen([high(least + 87), utxo(50 * ADA)], pay(3 * ADA)).inputs == (utxo(50 * ADA),)


def test_a_utxo_that_pays_exactly_is_preferred_to_one_that_would_leave_dust() -> None:
    near, exact = utxo(3 * ADA + ONE_IN_ONE_OUT + 10), Utxo("ee" * 32, 24, 3 * ADA + ONE_IN_ONE_OUT + 44)
    assert chosen([near, exact, utxo(50 * ADA, 3)], pay(3 * ADA)).inputs == (exact,)


def test_the_nonce_utxo_is_not_spent_twice_when_another_has_the_same_amount() -> None:
    wallet = [utxo(3 * ADA, 1), utxo(3 * ADA, 2), utxo(50 * ADA, 3)]
    plan = chosen(wallet, pay(6 * ADA - ONE_IN_ONE_OUT - 44 * 36), nonce_utxo=wallet[0])
    assert (plan.inputs, plan.change) == ((wallet[0], wallet[1]), ())


@pytest.mark.parametrize("over", range(-3, 182, 1))
def test_the_fee_exceeds_the_minimum_by_at_most_176_lovelace(over: int) -> None:
    plan = chosen([utxo(3 * ADA + ONE_IN_ONE_OUT + 44 * 65 + 2**32 - 1 + over)], pay(3 * ADA))
    (change,) = plan.change
    extra = plan.fee_lovelace - fee_of(plan)
    if 0 < over <= 176:
        assert (change.lovelace, extra) == (2**32 - 1, over)
    else:
        assert extra == 0
        assert change.lovelace == 2**32 - 1 + over - (176 if over > 0 else 0)


def test_change_too_big_for_one_output_is_spread_over_several() -> None:
    wallet = [utxo(300 * ADA, n, **{f"a{k}": 2**62 + k for k in range(n * 60, n * 60 + 60)}) for n in range(4)]
    plan = chosen(wallet, pay(1100 * ADA))
    assert len(plan.change) > 1
    kept = {name: units for output in plan.change for name, units in output.assets}
    assert kept == {name: units for c in wallet for name, units in c.assets}


@pytest.mark.parametrize(("policies", "most"), [(1, 260), (2, 259)])
def test_each_change_output_is_as_full_as_the_ledger_allows(policies: int, most: int) -> None:
    for count in (most, most + 1):
        tokens = tuple((f"{min(n, policies - 1):056x}{n:034x}", 1) for n in range(count))
        wallet = [
            utxo(9 * ADA),
            Utxo("01" * 32, 0, 5000 * ADA, tokens[:130]),
            Utxo("02" * 32, 0, ADA, tokens[130:]),
        ]
        plan = build(wallet, wallet[0], pay(2 * ADA), **FRAME)
        assert len(plan.change) == 1 + (count > most)
        for output in plan.change:
            names: dict[bytes, dict[bytes, int]] = {}
            for name, units in output.assets:
                names.setdefault(bytes.fromhex(name[:56]), {})[bytes.fromhex(name[56:])] = units
            assert len(cbor2.dumps([output.lovelace, names])) <= 5000


def test_a_token_amount_too_big_for_one_output_is_spread_over_several() -> None:
    wallet = [utxo(5 * ADA, n, a1=2**63 - 1) for n in range(3)]
    plan = chosen(wallet, pay(11 * ADA))
    assert [dict(output.assets) for output in plan.change] == [{ASSETS[1]: 2**63 - 1}] * 3


# --- many UTxOs ---


def test_400_dust_utxos_can_pay_together() -> None:
    wallet = [utxo(LEAST + n, n) for n in range(400)]
    plan = chosen(wallet, pay(370 * ADA))
    assert len(plan.inputs) > 380


def test_a_token_spread_over_many_utxos_is_paid() -> None:
    wallet = [utxo(1_200_000, n, a1=10) for n in range(300)]
    plan = chosen(wallet, pay(2500, 400, name=ASSETS[1]))
    assert len(plan.inputs) >= 290


def test_large_utxos_with_tokens_are_used_when_ada_only_ones_do_not_fit() -> None:
    wallet = [utxo(LEAST, n) for n in range(500)] + [utxo(200 * ADA, 1000 + n, a1=1) for n in range(3)]
    plan = chosen(wallet, pay(590 * ADA))
    assert plan.fee_lovelace == fee_of(plan)


def test_a_token_in_a_small_utxo_is_found_among_many_ada_only_utxos() -> None:
    outputs = [Output("pay_to", payee(n), ASSETS[1], 1) for n in range(126)]
    wallet = [utxo(1_200_000, 1, a1=500), utxo(300 * ADA, 2, a2=1), *(utxo(1_250_000, 10 + n) for n in range(500))]
    assert wallet[1] in chosen(wallet, outputs).inputs


def test_utxos_with_too_many_other_assets_are_left_out() -> None:
    def laden(number: int) -> Utxo:
        others = tuple((f"{60 * number + place:056x}" + "cc" * 32, 9) for place in range(60))
        return Utxo(f"{number:064x}", 0, 9 * ADA, ((ASSETS[1], 10), *others))

    rich = [utxo(1000 * ADA, 100 + n, a1=5) for n in range(20)]
    plan = chosen([*map(laden, range(6)), *rich], pay(45, name=ASSETS[1]))
    assert set(plan.inputs) < set(rich)


def test_no_room_for_the_change_is_refused_as_utxos_too_small() -> None:
    wallet = [utxo(1 * ADA, n) for n in range(449)]
    assert refusal(wallet, pay(449 * ADA - 876_000 - 1 * ADA)).name == "utxos_too_small/inputs"
    assert len(chosen(wallet, pay(447 * ADA - 876_000 - 1 * ADA)).inputs) == 447


def test_funds_in_too_many_utxos_are_refused_until_consolidated() -> None:
    wallet = [utxo(LEAST + n, n) for n in range(900)]
    assert refusal(wallet, pay(600 * ADA)).name == "utxos_too_small/inputs"
    swept = send_all(UtxoIndex(wallet), OWN, own=OWN, ttl_slot=TTL_SLOT, network_id=0)
    spent = {c.ref for c in swept.inputs}
    after = [c for c in wallet if c.ref not in spent] + [Utxo(swept.tx_id, 0, swept.outputs[0].lovelace)]
    assert len(after) < 470
    assert chosen(after, pay(600 * ADA)).outputs[0].lovelace == 600 * ADA


def test_a_token_in_too_many_utxos_is_refused_as_utxos_too_small() -> None:
    wallet = [utxo(1_200_000, n, a1=10) for n in range(900)]
    assert refusal(wallet, pay(8000, name=ASSETS[1])).name == "utxos_too_small/inputs"


@pytest.mark.parametrize(
    ("outputs", "asset", "shortfall"),
    [
        (pay(10 * ADA, 5 * ADA), "lovelace", 5 * ADA + 155_381 + 44 * 296),
        (pay(10 * ADA - 155_381 - 44 * 231 + 1), "lovelace", 1),
        (pay(101, name=ASSETS[1]), ASSETS[1], 1),
        (pay(5, name=ASSETS[2]), ASSETS[2], 5),
    ],
)
def test_a_refusal_names_the_asset_and_the_shortfall(outputs: list[Output], asset: str, shortfall: int) -> None:
    error = refusal([utxo(5 * ADA, 1), utxo(5 * ADA, 2, a1=100)], outputs)
    assert error.name == "not_enough_funds"
    assert error.context == {"asset": asset, "shortfall": str(shortfall)}


def test_an_empty_wallet_is_refused_as_not_enough_funds() -> None:
    assert refusal([], pay(5 * ADA)).name == "not_enough_funds"


def test_outputs_too_big_for_one_transaction_are_refused() -> None:
    outputs = [Output("pay_to", payee(n), "lovelace", ADA) for n in range(300)]
    assert refusal([utxo(5000 * ADA)], outputs).name == "utxos_too_small/transaction_size"


def test_outputs_that_fill_a_transaction_are_paid_and_one_byte_more_is_refused() -> None:
    def outputs(wide: int) -> list[Output]:
        units = [2**32 if n < wide else ADA for n in range(251)]
        return [Output("pay_to", payee(n, base=n > 3), "lovelace", units[n]) for n in range(251)]

    def holding(lovelace: int) -> list[Utxo]:
        return [Utxo("ee" * 32, 256, lovelace)]

    def exact(asked: list[Output]) -> list[Utxo]:
        return holding(sum(o.units for o in asked) + 155_381 + 44 * 16_384)

    plan = chosen(exact(outputs(3)), outputs(3))
    assert (plan.size, plan.change) == (16_384, ())
    assert refusal(exact(outputs(4)), outputs(4)).name == "utxos_too_small/transaction_size"
    asked = outputs(3)[:-1]  # one output fewer leaves room for the change
    plan = chosen(holding(sum(o.units for o in asked) + 3 * ADA), asked)
    assert (plan.size, len(plan.change)) == (16_384, 1)


def test_a_fee_above_the_cap_is_refused() -> None:
    assert refusal([utxo(50 * ADA)], pay(5 * ADA), fee_cap_lovelace=160_000).name == "fee_too_high"
    fee_lovelace = ONE_IN_ONE_OUT + 44 * 65
    assert chosen([utxo(50 * ADA)], pay(5 * ADA), fee_cap_lovelace=fee_lovelace).fee_lovelace == fee_lovelace
    assert refusal([utxo(50 * ADA)], pay(5 * ADA), fee_cap_lovelace=fee_lovelace - 1).name == "fee_too_high"


def test_a_transaction_of_the_maximum_size_is_built_and_one_byte_more_is_refused() -> None:
    outputs = pay(*[2 * ADA] * 212)

    def sized(wide: int) -> TxPlan:
        utxos = [Utxo(f"{n:064x}", 24 if n < wide else 0, 7 * ADA) for n in range(66)]
        return build(utxos, utxos[0], outputs, **FRAME)

    spare = 16_384 - sized(0).size
    assert sized(spare).size == 16_384
    with pytest.raises(Refused) as caught:
        sized(spare + 1)
    assert caught.value.name == "utxos_too_small/transaction_size"


@pytest.mark.parametrize(
    ("plan", "paid"),
    [
        (select(UtxoIndex([utxo(50 * ADA)]), pay(2 * ADA, 3 * ADA), **FRAME), 2),
        (select(UtxoIndex([utxo(50 * ADA)]), [Output("change", OWN, "lovelace", ADA), *pay(2 * ADA)], **FRAME), 2),
        (select(UtxoIndex([utxo(50 * ADA)]), split_outputs(OWN, 3, 4 * ADA), **FRAME), 0),
        (send_all(UtxoIndex([utxo(50 * ADA)]), payee(3), own=OWN, ttl_slot=TTL_SLOT, network_id=0), 1),
    ],
)
def test_the_plan_counts_the_outputs_before_those_that_all_pay_the_wallet(plan: TxPlan, paid: int) -> None:
    assert plan.paid == paid


# --- self-transfers ---


@pytest.mark.parametrize("count", [22, 23, 24])
def test_the_fee_is_right_when_the_output_count_takes_one_more_byte(count: int) -> None:
    plan = chosen([utxo(200 * ADA)], list(split_outputs(OWN, count, 4 * ADA)))
    assert len(plan.outputs) == count + 1
    assert plan.fee_lovelace == fee_of(plan)


def test_a_split_may_be_as_large_as_one_transaction_with_change_holds() -> None:
    plan = chosen([utxo(500 * ADA)], list(split_outputs(OWN, SPLIT_COUNT_MAX, ADA)))
    assert len(plan.change) == SPLIT_COUNT_MAX + 1
    more = list(split_outputs(OWN, SPLIT_COUNT_MAX + 1, ADA))
    assert refusal([utxo(500 * ADA)], more).name == "utxos_too_small/inputs"  # it would fit only without change


def test_a_split_makes_equal_utxos_and_spends_only_the_fee() -> None:
    plan = chosen([utxo(200 * ADA, 1), utxo(1 * ADA, 2)], list(split_outputs(OWN, 40, 4 * ADA)))
    assert [o.lovelace for o in plan.outputs[:40]] == [4 * ADA] * 40
    assert {o.role for o in plan.outputs} == {"change"}
    assert plan.spend == {"lovelace": plan.fee_lovelace}


def test_send_all_sends_everything_minus_the_fee() -> None:
    wallet = [utxo(5 * ADA, 1), utxo(7 * ADA, 2, a1=9, a2=2**63 - 1)]
    plan = send_all(UtxoIndex(wallet), payee(3), own=OWN, ttl_slot=TTL_SLOT, network_id=0)
    check(sign(plan, SIGNER), plan, SIGNER.public_key)
    assert plan.change == ()
    assert plan.spend == {"lovelace": 12 * ADA, ASSETS[1]: 9, ASSETS[2]: 2**63 - 1}
    assert plan.outputs[0].lovelace == 12 * ADA - plan.fee_lovelace
    again = build(plan.inputs, plan.nonce_utxo, (), **{**FRAME, "change": payee(3)}, rest_role="pay_to")
    assert again == plan


def test_send_all_of_many_utxos_comes_in_batches_that_each_fit() -> None:
    rnd = random.Random(3)
    utxos = UtxoIndex(random_wallet(rnd, 700) + [pure_utxo(rnd) for _ in range(300)])
    batches = 0
    while len(utxos):
        plan = send_all(utxos, payee(3), own=OWN, ttl_slot=TTL_SLOT, network_id=0)
        check(sign(plan, SIGNER), plan, SIGNER.public_key)
        for spent in plan.inputs:
            utxos.remove(spent.ref)
        batches += 1
    assert 3 <= batches < 40


def test_send_all_spends_a_given_nonce_utxo_whether_it_is_available_or_not() -> None:
    nonce_utxo, free = utxo(90 * ADA, 1), [utxo(5 * ADA, 2), utxo(7 * ADA, 3)]
    for utxos in (free, [*free, nonce_utxo]):
        plan = send_all(
            UtxoIndex(utxos), payee(3), own=OWN, ttl_slot=TTL_SLOT, network_id=0, nonce_utxo=nonce_utxo
        )
        check(sign(plan, SIGNER), plan, SIGNER.public_key)
        assert (plan.nonce_utxo, set(plan.inputs)) == (nonce_utxo, {nonce_utxo, *free})


def test_send_all_takes_the_smallest_utxos_when_not_all_fit() -> None:
    wallet = [utxo(LEAST + n, n) for n in range(500)]
    swept = send_all(UtxoIndex(wallet), OWN, own=OWN, ttl_slot=TTL_SLOT, network_id=0)
    assert set(swept.inputs) == set(wallet[: len(swept.inputs)])


def test_send_all_fills_a_transaction_to_within_4_bytes() -> None:
    sizes = []
    for wide in range(36):
        wallet = [Utxo(f"{n:064x}", 24 if n < wide else 0, LEAST + n) for n in range(460)]
        sizes.append(send_all(UtxoIndex(wallet), payee(3), own=OWN, ttl_slot=TTL_SLOT, network_id=0).size)
    assert max(sizes) == 16_384 - 4


def test_send_all_includes_a_large_utxo_when_the_small_ones_cannot_pay_their_fee() -> None:
    def laden(number: int) -> Utxo:
        tokens = {f"{70 * number + place:056x}" + "cc" * 32: 9 for place in range(70)}
        return Utxo(f"{number:064x}", 0, min_lovelace(OWN.raw, tokens, PARAMETERS), tuple(tokens.items()))

    large = utxo(900 * ADA, 9)
    plan = send_all(UtxoIndex([*map(laden, range(4)), large]), OWN, own=OWN, ttl_slot=TTL_SLOT, network_id=0)
    check(sign(plan, SIGNER), plan, SIGNER.public_key)
    assert large in plan.inputs


@pytest.mark.parametrize("large", [4, 40])
def test_send_all_leaves_out_utxos_with_a_barred_asset(large: int) -> None:
    wallet = [utxo(large * ADA, 1, a1=9, a2=1), utxo(5 * ADA, 2, a2=7), utxo(6 * ADA, 3)]
    frame = {"own": OWN, "ttl_slot": TTL_SLOT, "network_id": 0, "barred": {ASSETS[1]}}
    plan = send_all(UtxoIndex(wallet), payee(3), **frame)
    check(sign(plan, SIGNER), plan, SIGNER.public_key)
    assert set(plan.inputs) == set(wallet[1:])
    assert plan.spend == {"lovelace": 11 * ADA, ASSETS[2]: 7}
    with pytest.raises(Refused) as caught:
        send_all(UtxoIndex(wallet[:1]), payee(3), **frame)
    assert caught.value.name == "not_enough_funds"


def test_send_all_of_too_little_is_refused() -> None:
    with pytest.raises(Refused) as caught:
        send_all(UtxoIndex([utxo(1 * ADA)]), payee(3), own=OWN, ttl_slot=TTL_SLOT, network_id=0)
    assert caught.value.name == "not_enough_funds"
    with pytest.raises(Refused):
        send_all(UtxoIndex(), payee(3), own=OWN, ttl_slot=TTL_SLOT, network_id=0)


# --- against the reference ---


@pytest.mark.parametrize("seed", range(pick(2, 8)))
def test_every_payment_the_largest_utxos_can_make_is_built(seed: int) -> None:
    rnd = random.Random(seed)
    built = refused = 0
    for _ in range(300):
        wallet = random_wallet(rnd, wallet_size(rnd))
        asked = random_outputs(rnd, wallet)
        plan, code = attempted(wallet, asked)
        if plan is None:
            refused += 1
            assert not reference.largest_first_fits(wallet, asked, OWN.raw, TTL_SLOT)
            whole = reference.fits(wallet, asked, OWN.raw, TTL_SLOT, size_max=10**9)
            # When one transaction of any size could pay, the funds are there and the refusal must say so.
            assert code == "utxos_too_small/inputs" if whole else len(wallet) > 300 or code == "not_enough_funds"
        else:
            built += 1
            assert 0 <= plan.fee_lovelace - fee_of(plan) <= 176
            assert reference.fits(plan.inputs, asked, OWN.raw, TTL_SLOT)
    assert built > 100
    assert refused > 10


def attempted(wallet: list[Utxo], asked: list[Output]) -> tuple[TxPlan | None, str]:
    try:
        return chosen(wallet, asked), ""
    except Refused as error:
        return None, error.name
