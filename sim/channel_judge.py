"""The judge of channels, beside the one of payments.

- C1: a voucher is signed, and reaches a merchant, only below what the durable ledger has promised before.
- C2: nothing on the chain was taken above that.
- C3: what was promised never falls, keeps to the limits, and a count is covered by a voucher of ours.
- C4: a key is charged once, and a request gets no answer but its own. Not judged: the answer to a call that an
  older ledger has without one.
- C5: a merchant has one channel, whose money keeps to the caps and comes back: locked = returned + taken.

Never: changes anything; trusts the agent about the chain.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from random import Random

from payagent.audit.signed_bytes import Owner
from payagent.core.channel import LIVE, LOCKED, Channel, ChannelPhase
from payagent.core.ledger import FEES, channel_account
from payagent.devnet.channel_script import (
    SCRIPT_ADDRESS,
    SCRIPT_HASH,
    ChannelDatum,
    ScriptFailed,
    channel_tag,
    is_iou,
    read_datum,
)
from payagent.devnet.ledger import DevnetBlock, LedgerError, OutRef, Tx, TxOut, decode_tx
from payagent.settings.schema import ChannelSettings
from payagent.store.db.unit import Connection
from payagent.store.rows import channels as rows
from payagent.store.rows import journal
from sim.judge import FEE_MAX_LOVELACE, Judge, Market, Signed
from sim.network import Net
from sim.spend_judge import _LINES
from sim.trace import Trace

_KNOWN = "SELECT id, phase FROM channels"
_VERSION = "SELECT COALESCE(MAX(seq), 0) FROM events"
_CALLS = "SELECT intent_id FROM channel_calls WHERE state <> 'void' GROUP BY intent_id HAVING COUNT(*) > 1"
_UNANSWERED = (
    "SELECT i.request FROM channel_calls c JOIN intents i ON i.id = c.intent_id WHERE c.state = 'promised'"
)
_STEP = "SELECT channel_id, step FROM channel_steps WHERE payment_id = ?"


@dataclass(frozen=True, slots=True)
class Caps:
    """What the configuration allows. `providers`: the claiming key of each merchant, by its origin."""

    settings: ChannelSettings
    providers: Mapping[str, str]
    locked_max: int
    deposit: int


class ChannelJudge(Judge):
    """As the judge of payments, and for channels."""

    def __init__(
        self,
        net: Net,
        story: Trace,
        owner: Owner,
        market: Market,
        cap_units: int,
        rng: Random,
        caps: Callable[[], Caps],
    ) -> None:
        super().__init__(net, story, owner, market, cap_units, rng)
        self._caps = caps
        self._cap_units = cap_units
        self._known: dict[str, Channel] = {}
        """Each channel as the durable ledger has it."""
        self._promised: dict[str, int] = {}
        """By channel: the most that any durable ledger had promised."""
        self._vouchers: dict[str, int] = {}
        """By channel: the highest voucher that was signed."""
        self._tags: dict[str, str] = {}
        """By channel: the id of the opening that was released."""
        self._brought_back: set[str] = set()
        """Channels that a rollback or a recovery made hold money again. No cap can refuse that."""
        self._was_put_back = False
        self._maybe_paid: set[str] = set()
        """Paths of calls that an older ledger has without an answer. Later calls may have had their vouchers."""
        self._as_of: tuple[object, int] = (None, 0)
        self.delivered = 0

    # --- vouchers

    def asked_to_sign(self, channel: str, amount: int) -> None:
        """The signer gets a request for a voucher."""
        known = self._known.get(channel)
        promised = 0 if known is None else known.signed
        self._story.tell(f"a voucher of {channel[:8]} for {amount} is signed, {promised} are promised")
        if amount > promised:
            self._story.violate("C1", f"a voucher of {channel[:8]} for {amount} is signed, durable are {promised}")
        self._vouchers[channel] = max(amount, self._vouchers.get(channel, 0))

    def presented(self, channel: str, amount: int) -> None:
        """A voucher arrives at a merchant."""
        if amount > self._promised.get(channel, 0):
            self._story.violate("C1", f"a voucher of {channel[:8]} for {amount} was sent, and is not durable")

    def got(self, want: str, path: str, answer: str) -> None:
        """A client has a paid answer."""
        self.delivered += 1
        if path != answer and path not in self._maybe_paid:
            self._story.violate("C4", f"{want}: {path} got the answer of {answer}")

    # --- the record

    def committed(self, conn: Connection, *, synced: bool) -> None:
        super().committed(conn, synced=synced)
        as_of = (conn, conn.execute(_VERSION).fetchone()[0])
        if as_of == self._as_of or not synced:
            return
        self._as_of = as_of
        known = {row[0]: rows.channel(conn, row[0]) for row in conn.execute(_KNOWN).fetchall()}
        for channel in known.values():
            self._check_channel(conn, channel, self._known.get(channel.id))
        self._known = known
        self._check_sums(conn)

    def _check_channel(self, conn: Connection, now: Channel, before: Channel | None) -> None:
        if now == before:
            return
        if before is None or (now.phase, now.signed, now.count) != (before.phase, before.signed, before.count):
            self._story.tell(
                f"channel {now.id[:8]} is {now.phase}: {now.deposited} locked, {now.signed} promised, "
                f"{now.count} counted, {now.claimed} claimed, {now.returned} returned"
            )
        if before is None or before.phase is not now.phase:
            self._story.reach(f"a channel is {now.phase}")
        if before is not None and now.signed < before.signed:
            self._story.violate("C3", f"what {now.id[:8]} promised falls from {before.signed} to {now.signed}")
        if now.count > now.signed and now.claimed <= now.signed:
            self._story.violate("C3", f"{now.id[:8]} counts {now.count}, promised are {now.signed}")
        if now.voucher is not None and (before is None or before.voucher != now.voucher):
            key, tag, signature = (bytes.fromhex(one) for one in (now.iou_key, now.id, now.voucher))
            if not is_iou(key, tag, now.voucher_amount, signature):
                self._story.violate("C3", f"{now.id[:8]} counts by a voucher that is not ours")
        call = rows.unanswered_call(conn, now.id)  # what a start promises is no call's, and nobody signs it
        is_more = before is not None and now.signed > before.signed > now.capacity
        if is_more and now.phase is ChannelPhase.OPEN and call is not None and call.amount == now.signed:
            self._story.violate("C3", f"{now.id[:8]} promises {now.signed}, its capacity is {now.capacity}")
        if now.phase is ChannelPhase.CLOSING and (before is None or before.phase not in LOCKED):
            self._brought_back.add(now.id)
        self._promised[now.id] = max(now.signed, self._promised.get(now.id, 0))

    def _check_sums(self, conn: Connection) -> None:
        # where nothing is counted, the question for the count is a voucher for 1, and no call's
        caps, signed = self._caps(), sum(amount for amount in self._vouchers.values() if amount > 1)
        if signed > self._cap_units and not self._was_put_back:
            self._story.violate("C3", f"vouchers are for {signed}, the limit is {self._cap_units}")
        locked = [one for one in self._known.values() if one.phase in LOCKED]
        for cap, channels in (
            (caps.settings.locked_max_lovelace, locked),
            *((caps.locked_max, [one for one in locked if one.origin == origin]) for origin in caps.providers),
        ):
            if (held := sum(one.deposited for one in channels if one.id not in self._brought_back)) > cap:
                self._story.violate("C5", f"{held} are locked, the cap is {cap}")
        for origin in caps.providers:
            if sum(one.origin == origin and one.phase in LIVE for one in locked) > 1:
                self._story.violate("C5", f"{origin} has two channels")
        for (intent,) in conn.execute(_CALLS).fetchall():
            self._story.violate("C4", f"{intent} has two calls")

    def put_back(self, conn: Connection) -> None:
        super().put_back(conn)
        self._was_put_back, self._known, self._as_of = True, {}, (None, 0)
        self._maybe_paid |= {row[0].split()[1] for row in conn.execute(_UNANSWERED).fetchall()}

    def started(self, conn: Connection) -> None:
        """The calls have started: what an older ledger has forgotten is promised again."""
        for channel in (rows.channel(conn, row[0]) for row in conn.execute(_KNOWN).fetchall()):
            highest = self._vouchers.get(channel.id, 0)
            if channel.phase is ChannelPhase.OPEN and channel.signed < highest:
                why = f"{highest} were signed once, after the start {channel.signed} are promised"
                self._story.violate("C3", f"{channel.id[:8]}: {why}")

    # --- transactions

    def _check_bytes(self, signed: Signed) -> None:
        """I3 for the steps of channels: what leaves the wallet is locked in a channel of ours."""
        try:
            tx = decode_tx(signed.cbor)
        except LedgerError as error:
            self._story.violate("I3", f"{signed.tx_id[:8]} is no payment: {error}")
            return
        kept, before = self._channels_in(tx)
        if not kept and not before:
            super()._check_bytes(signed)
            return
        if tx.fee_lovelace > FEE_MAX_LOVELACE:
            self._story.violate("I3", f"{signed.tx_id[:8]} has a fee of {tx.fee_lovelace}")
        if signed.nonce_utxo not in {f"{ref[0]}#{ref[1]}" for ref in tx.inputs}:
            self._story.violate("I1", f"{signed.tx_id[:8]} does not spend its payment's nonce UTxO")
        elsewhere = [out for out in tx.outputs if out.address not in (*self._own, SCRIPT_ADDRESS)]
        if elsewhere or len(kept) > 1 or len(before) > 1:
            self._story.violate(
                "I3", f"{signed.tx_id[:8]} is a step of a channel and pays {len(elsewhere)} others"
            )
        tags = {channel_tag(ref) for ref in tx.inputs}
        for out in kept:
            datum = self._datum(out)
            is_ours = datum is not None and (
                datum.own_hash == SCRIPT_HASH
                and datum.consumer == next(iter(self._own))[1:29]
                and datum.provider.hex() in self._caps().providers.values()
                and (bool(before) or datum.tag in tags)
            )
            if not is_ours:
                self._story.violate("I3", f"{signed.tx_id[:8]} locks money in a channel of somebody else")
            elif out.lovelace > self._caps().locked_max:
                self._story.violate("C5", f"{signed.tx_id[:8]} locks {out.lovelace}")

    def _channels_in(self, tx: Tx) -> tuple[list[TxOut], list[TxOut]]:
        """A transaction's outputs at the script, and those that it spends there."""
        made = [out for out in tx.outputs if out.address == SCRIPT_ADDRESS]
        spent = [out for out in map(self._output, tx.inputs) if out is not None and out.address == SCRIPT_ADDRESS]
        return made, spent

    def _output(self, ref: OutRef) -> TxOut | None:
        tx = self._net.hoard.get(ref[0])
        return None if tx is None else tx.outputs[ref[1]]

    @staticmethod
    def _datum(out: TxOut) -> ChannelDatum | None:
        try:
            return read_datum(out.inline_datum)
        except ScriptFailed:
            return None

    def released(self, raw: bytes, where: str) -> None:
        is_first = (tx := decode_tx(raw)).tx_id not in self._released
        super().released(raw, where)
        made, spent = self._channels_in(tx)
        if is_first and made and not spent and (datum := self._datum(made[0])) is not None:
            self._tags[datum.tag.hex()] = tx.tx_id
        if spent:
            self._spends.pop(tx.tx_id, None)  # its sum is the channel's too: see `_check_payment`

    # --- the chain

    def blocks_made(self, blocks: "list[DevnetBlock]") -> None:  # type: ignore[override]
        super().blocks_made(blocks)
        for tx in (tx for block in blocks for tx in block.txs if tx.tx_id in self._net.hoard):
            for out in self._channels_in(tx)[0]:
                if (datum := self._datum(out)) is not None and datum.subbed > self._promised.get(
                    datum.tag.hex(), 0
                ):
                    self._story.violate(
                        "C2", f"{datum.subbed} of {datum.tag.hex()[:8]} are taken, less was promised"
                    )

    # --- the end

    def _check_payment(self, conn: Connection, payment_id: str, landed: list[str]) -> None:
        row = conn.execute(_STEP, (payment_id,)).fetchone()
        pays = [tx_id for tx_id in landed if self.signed[tx_id].kind == "pay"]
        if row is None or not pays:
            super()._check_payment(conn, payment_id, landed)
            return
        tx = self._released[pays[0]]
        made, spent = self._channels_in(tx)
        delta = sum(out.lovelace for out in made) - sum(out.lovelace for out in spent)
        true = {channel_account(rows.channel(conn, row[0]).origin): delta, FEES: tx.fee_lovelace}
        booked: dict[str, int] = {}
        for name, _asset, units in conn.execute(_LINES, (payment_id, "wallet")):
            booked[name] = booked.get(name, 0) + units
        if {name: units for name, units in booked.items() if units} != {n: u for n, u in true.items() if u}:
            self._story.violate("I2", f"{row[1]} {payment_id} is booked as {booked}, the chain has {true}")

    def channels_at_rest(self, conn: Connection) -> None:
        """Everything has ended: nothing of ours is locked any more, and the books say what became of it."""
        known = {row[0]: rows.channel(conn, row[0]) for row in conn.execute(_KNOWN).fetchall()}
        on_chain: dict[str, int] = {}
        for ref, out in self._net.chain.utxos_at(SCRIPT_ADDRESS):
            if ref[0] in self._net.hoard and (datum := self._datum(out)) is not None:
                on_chain[datum.tag.hex()] = out.lovelace
        # the money is in the wallet; `ledger reconcile` names such a channel, and nothing ends it
        lost = [
            one for one in known.values() if self._was_put_back and one.phase in LOCKED and one.id not in on_chain
        ]
        if lost:
            self._story.reach("an older ledger lacks the end of a channel")
        for channel in known.values():
            if channel in lost:
                continue
            self._check_ended(channel)
            if channel.id in on_chain and channel.phase not in LOCKED:
                self._story.violate("C5", f"{channel.id[:8]} is {channel.phase}, and holds {on_chain[channel.id]}")
        for tag in on_chain.keys() - known.keys():
            self._story.reach("a channel is forgotten by an older ledger")
            if not self._was_put_back:
                self._story.violate("C5", f"the ledger does not know {tag[:8]}, which holds {on_chain[tag]}")
        unknown = {channel_account(one.origin) for one in lost}
        left = {
            account: units
            for account, _, units in journal.balances(conn)
            if account.startswith("channel:") and account not in unknown
        }
        if any(left.values()):
            self._story.violate("C5", f"the books have {left} in channels that have ended")

    def _check_ended(self, channel: Channel) -> None:
        name = channel.id[:8]
        if channel.phase in LOCKED:
            self._story.violate("I4", f"channel {name} is still {channel.phase}")
        elif channel.phase is ChannelPhase.ENDED:
            if channel.deposited != channel.returned + channel.claimed:
                self._story.violate(
                    "C5", f"{name}: {channel.deposited} is not {channel.returned} and {channel.claimed}"
                )
            if channel.claimed > channel.signed:
                self._story.violate(
                    "C2", f"{channel.claimed} of {name} were taken, the ledger promised {channel.signed}"
                )
            if channel.claimed > self._promised.get(channel.id, 0):
                self._story.violate("C2", f"{channel.claimed} of {name} were taken")
