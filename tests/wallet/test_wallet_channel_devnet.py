"""The life of a channel on the devnet, whose validator and decoder share nothing with ours."""

from dataclasses import dataclass, replace
from typing import Any

import pytest
from kit.channels import ADA, COINS_PER_BYTE, CONSUMER, OWN, PROVIDER, TERMS, build, signed

from payagent.devnet.channel_script import SCRIPT, SCRIPT_HASH
from payagent.devnet.ledger import Chain, LedgerError, Params
from payagent.wallet.channel_build import ScriptParameters, StepOrder
from payagent.wallet.channel_tx import ChannelOutput, TxRef, added, channel_tag, closed, opened
from payagent.wallet.utxo_index import Utxo

START_MS = 1_700_000_000_000
MINUTES_30 = 1_800


@dataclass
class Life:
    """A chain, the wallet's one coin, and the channel if there is one."""

    chain: Chain
    coin: Utxo
    channel: tuple[TxRef, ChannelOutput] | None = None

    def do(self, step: str, output: ChannelOutput | None = None, **more: Any) -> None:
        """Build a step, sign it, submit it, and make a block. Raises what the devnet refuses."""
        order = StepOrder(step, OWN, (self.coin,), self.chain.slot + MINUTES_30, self.channel, output, **more)
        if self.channel:
            parameters = ScriptParameters(tuple(self.chain.params.cost_model))
            order = replace(order, script=SCRIPT, scripts=parameters)
        raw, read = build(order)
        keys = [CONSUMER, PROVIDER] if step == "mutual" else [CONSUMER]
        tx_id = self.chain.submit(signed(raw, read, keys))
        self.chain.make_block()
        place = len(read.others) - 1 + (output is not None)
        self.coin = Utxo(tx_id, place, read.others[-1][1])
        self.channel = ((bytes.fromhex(tx_id), 0), output) if output else None

    @property
    def held(self) -> ChannelOutput:
        assert self.channel is not None
        return self.channel[1]

    def ttl_ms(self) -> int:
        return START_MS + (self.chain.slot + MINUTES_30) * 1000


@pytest.fixture
def life() -> Life:
    chain = Chain(Params(system_start_ms=START_MS), 0, 1_000)
    coin = Utxo(chain.faucet(OWN, 50 * ADA), 0, 50 * ADA)
    chain.make_block()
    return Life(chain, coin)


def open_channel(life: Life) -> None:
    tag = channel_tag(bytes.fromhex(life.coin.tx_id), life.coin.index)
    terms = replace(TERMS, script_hash=SCRIPT_HASH, tag=tag)
    life.do("open", opened(terms, 10 * ADA, COINS_PER_BYTE))


def test_a_channel_is_opened_added_to_closed_and_returned_after_its_delay(life: Life) -> None:
    open_channel(life)
    life.do("add", added(life.held, 5 * ADA))
    assert life.held.lovelace == 15 * ADA
    life.do("close", closed(life.held, life.ttl_ms()))
    elapse_ms = life.held.stage.elapse_at_ms
    assert elapse_ms is not None
    first_slot = -(-(elapse_ms - START_MS) // 1000)
    with pytest.raises(LedgerError):
        life.do("elapse", start_slot=life.chain.slot)
    life.chain.slot = first_slot
    life.do("elapse", start_slot=first_slot)
    assert life.coin.lovelace >= 50 * ADA - 1_200_000


def test_a_close_that_would_end_the_delay_early_is_refused(life: Life) -> None:
    open_channel(life)
    with pytest.raises(LedgerError):
        life.do("close", closed(life.held, life.ttl_ms() - 1))


def test_both_may_end_a_channel_at_once_and_one_alone_may_not(life: Life) -> None:
    open_channel(life)
    life.do("mutual")
    assert life.coin.lovelace >= 48 * ADA - 900_000


def test_another_amount_taken_than_before_is_refused(life: Life) -> None:
    open_channel(life)
    more = added(life.held, 5 * ADA)
    with pytest.raises(LedgerError):
        life.do("add", replace(more, stage=replace(more.stage, subbed=1)))
