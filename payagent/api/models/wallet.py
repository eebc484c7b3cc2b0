"""The wallet: operator's transfers, balances, UTxOs, and the pause of all signing.

Never: I/O.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, Field, PlainValidator, WithJsonSchema

from payagent.agent.base.chain_view import ChainView
from payagent.agent.base.config import AgentConfig
from payagent.agent.fleet.fleet import FleetStatus
from payagent.api.models.base import (
    Amounts,
    GivenUnits,
    Hex,
    InSupply,
    Line,
    RequestBody,
    Shown,
    Time,
    Units,
    absent,
    closed,
    refusing,
)
from payagent.api.models.payments import Payment
from payagent.core.address import Address, parse_address
from payagent.core.aggregate import UtxoRow
from payagent.core.bounds import SPLIT_COUNT_MAX
from payagent.core.ledger import HELD, WALLET, add, general_account
from payagent.core.money import LOVELACE, parse_asset
from payagent.core.network import Network
from payagent.core.problems import Refused, own_order

Balance = tuple[str, str, int]
UtxoState = Literal["available", "reserved", "pending", "locked", "missing"]


class SplitOrder(RequestBody):
    """Make `count` UTxOs of pure ADA."""

    count: Annotated[int, Field(ge=1, le=SPLIT_COUNT_MAX)]
    lovelace: Annotated[GivenUnits, InSupply]


class UnfreezeWallet(RequestBody):
    """Sign again after another program spent from the wallet."""

    seen: list[Hex] = absent(
        "The transactions that were reviewed, from `frozen_by` of the wallet. Without it all are accepted."
    )


def _own_asset(value: object) -> str:
    try:
        with own_order(key="asset"):
            return parse_asset(value)
    except Refused as refused:
        raise refusing(refused) from None


def _true(value: object) -> object:
    """Literal[True] alone would also accept 1."""
    if value is not True:
        raise ValueError("all can only be true")
    return value


class SendFunds(RequestBody):
    """Send `units` of `asset`, or all available funds."""

    model_config = closed("units", "all")

    address: Annotated[object, WithJsonSchema({"type": "string"})]
    asset: Annotated[str, PlainValidator(_own_asset, json_schema_input_type=str)] = LOVELACE
    units: Annotated[GivenUnits, InSupply] = absent("How much to send.")
    all: Annotated[Literal[True], BeforeValidator(_true)] = absent("Send everything of one account.")
    account: Annotated[int, Field(ge=0)] = absent(
        "With `all`: the account, of a fleet's `accounts`. Without it, the one that has most ADA."
    )

    def destination(self, network: Network) -> Address:
        """Refused: `transfer_invalid`, and `bad_request` unless either `units` or `all` is given."""
        if ("all" in self.model_fields_set) == ("units" in self.model_fields_set):
            raise Refused("bad_request", "give either units or all", key="units")
        if {"all", "asset"} <= self.model_fields_set:
            raise Refused("bad_request", "all goes with no asset", key="all")
        if {"units", "account"} <= self.model_fields_set:
            raise Refused("bad_request", "account goes with all", key="account")
        with own_order(key="address"):
            return parse_address(self.address, network)


class LeftBehind(BaseModel):
    """UTxOs that a transfer of everything left in the wallet, because they hold tokens that may not be sent.

    `assets` names up to eight of these tokens. `detail` says why, and how to get the ADA.
    """

    utxos: int
    lovelace: Units
    assets: list[str]
    detail: str


class Transfer(Payment):
    """The payment of a transfer. `outputs` are what leaves the wallet."""

    left_behind: LeftBehind = absent("Present if everything was to be sent and some of it may not leave.")


class AssetBalance(BaseModel):
    """Units of an asset. `in_flight`: the part of `held` whose payments are signed and not confirmed yet."""

    asset: str
    available: Units
    held: Units
    in_flight: Units
    total: Units


class UtxoCounts(BaseModel):
    available: int
    reserved: int
    pending: int
    locked: int
    missing: int


class ChainStatus(BaseModel):
    """The chain as last read. `problem`: why nothing is signed now."""

    slot: int | None
    tip_height: int | None
    tip_slot: int | None
    tip_hash: str | None
    problem: str | None

    @classmethod
    def of(cls, chain: ChainView, now_ms: int) -> Self:
        tip, refusal = chain.tip, chain_refusal(chain, now_ms)
        return cls(
            slot=None if chain.slots is None else chain.slots.slot_at(now_ms),
            tip_height=None if tip is None else tip.height,
            tip_slot=None if tip is None else tip.slot,
            tip_hash=None if tip is None else tip.hash,
            problem=None if refusal is None else refusal.detail,
        )


def chain_refusal(chain: ChainView, now_ms: int) -> Refused | None:
    """The refusal that the chain view causes now; None when there is none."""
    try:
        chain.require_ready(now_ms)
    except Refused as refused:
        return refused
    return None


class WalletAccount(BaseModel):
    """An account of a fleet. `holder`: the host of the daemon that pays from it now; null: none does.

    From `leased_until` on another daemon may take it; null: nobody holds it. By the database's clock.
    """

    account: int
    address: str
    holder: str | None
    leased_until: Time | None


class DaemonOfFleet(BaseModel):
    """A daemon of a fleet, and the accounts that it holds. `url`: its own API.

    `lag_s`: seconds since it last renewed its leases. After 10 s it is `living` no more, and others take its
    accounts.
    """

    host: str
    url: str
    version: str
    accounts: list[int]
    lag_s: int
    living: bool


class Wallet(BaseModel):
    """The wallet. A token with the pay scope alone gets null for `assets`, `utxos` and `frozen_by`."""

    network: str
    address: str
    assets: list[AssetBalance] | None
    utxos: UtxoCounts | None
    frozen_by: Annotated[
        list[Hex] | None, Field(description="Transactions of other programs that froze signing until unfrozen.")
    ]
    chain: ChainStatus
    accounts: list[WalletAccount] = absent("In a fleet: all accounts that it pays from.")
    daemons: list[DaemonOfFleet] = absent(
        "In a fleet: its daemons. One that died is listed for ten minutes or longer, unless it restarts."
    )

    @classmethod
    def of(
        cls,
        config: AgentConfig,
        chain: ChainView,
        now_ms: int,
        utxos: Sequence[UtxoRow] | None = None,
        balances: Iterable[Balance] = (),
        in_flight: Mapping[str, int] = MappingProxyType({}),
        fleet: FleetStatus | None = None,
    ) -> Self:
        """Without `utxos`: only the details that an app needs for its requests."""
        operator_fields: dict[str, Any] = {"assets": None, "utxos": None, "frozen_by": None}
        if fleet is not None:
            operator_fields["accounts"] = _accounts(fleet)
        if utxos is not None:
            states = [utxo_state(utxo) for utxo in utxos]
            operator_fields |= {
                "assets": [
                    {"asset": asset, "in_flight": in_flight.get(asset, 0), **units}
                    for asset, units in wallet_units(utxos, balances).items()
                ],
                "utxos": {state: states.count(state) for state in UtxoCounts.model_fields},
                "frozen_by": list(chain.external_spends),
                **({} if fleet is None else {"daemons": _daemons(fleet)}),
            }
        return cls(
            network=config.network.name,
            address=config.own.text,
            chain=ChainStatus.of(chain, now_ms),
            **operator_fields,
        )


def _accounts(fleet: FleetStatus) -> list[WalletAccount]:
    hosts = {name: one.host for name, one in fleet.living.items()}
    return [
        WalletAccount(
            account=row.account,
            address=row.address,
            holder=hosts.get(row.holder or ""),
            leased_until=row.until_ms if row.holder is not None else None,
        )
        for row in fleet.accounts
    ]


def _daemons(fleet: FleetStatus) -> list[DaemonOfFleet]:
    return [
        DaemonOfFleet(
            host=one.host,
            url=one.url,
            version=one.version,
            accounts=[row.account for row in fleet.accounts if row.holder == one.id],
            lag_s=max(fleet.at_ms - one.seen_at_ms, 0) // 1000,
            living=one.id in fleet.living,
        )
        for one in sorted(fleet.daemons, key=lambda one: (one.host, one.url))
    ]


def wallet_units(utxos: Sequence[UtxoRow], balances: Iterable[Balance]) -> dict[str, dict[str, int]]:
    """Units by asset. `total` is what the ledger says is ours; `held` is kept for payments.

    `available` is what UTxO selection may use now. It can be less than total minus held, because unconfirmed
    change and locked or missing UTxOs are ours but cannot be spent.
    """
    spendable = [utxo for utxo in utxos if utxo_state(utxo) == "available"]
    available = add({LOVELACE: utxo.lovelace, **utxo.assets} for utxo in spendable)
    rows = [(general_account(name), {asset: units}) for name, asset, units in balances]
    owned = add(units for account, units in rows if account in (WALLET, HELD))
    held = add(units for account, units in rows if account == HELD)
    names = sorted({LOVELACE, *available, *owned}, key=lambda asset: (asset != LOVELACE, asset))
    parts = (("available", available), ("held", held), ("total", owned))
    return {asset: {part: units.get(asset, 0) for part, units in parts} for asset in names}


def utxo_state(utxo: UtxoRow) -> str:
    """The UTxO state to show: a reserved UTxO is "reserved", whether it is available or pending."""
    return "reserved" if utxo.reserved_for is not None else utxo.state


class UtxoDetails(Shown):
    ref: str
    lovelace: Units
    assets: Amounts
    state: UtxoState
    reserved_for: str | None


class Utxos(BaseModel):
    utxos: list[UtxoDetails]

    @classmethod
    def of(cls, rows: Iterable[UtxoRow]) -> Self:
        return cls.model_validate({"utxos": [replace(row, state=utxo_state(row)) for row in rows]})


class UnfreezeResult(BaseModel):
    tx: str | None
    txs: tuple[str, ...]


class PauseWallet(RequestBody):
    """Stop all signing."""

    reason: Line = Field(default="", description="Why. It is recorded, and shown with each refusal.")


class PauseStatus(BaseModel):
    """Whether signing is paused. `by` and `reason` are null for tokens that neither read nor operate."""

    paused: bool
    since: Time | None
    by: str | None
    reason: str | None
    already: bool = absent("Present, and true, if signing was paused before. That pause and its reason stay.")
