"""The wallet: what is ordered of it, what it holds, and the switch that stops signing.

May import: core, dialects, pydantic.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, Field

from payagent.api.models.base import Amounts, Closed, Hex, Time, Units, absent, closed
from payagent.api.models.payments import Payment
from payagent.core.bounds import SPLIT_COUNT_MAX


class SplitOrder(Closed):
    """Fan out into so many coins of pure ADA."""

    count: Annotated[int, Field(ge=1, le=SPLIT_COUNT_MAX)]
    lovelace: Units


class UnfreezeWallet(Closed):
    """Sign again after coins were spent elsewhere."""

    seen: list[Hex] = absent(
        "The transactions that were looked at, as `frozen_by` of the wallet has them. Without it all are cleared."
    )


class SendFunds(Closed):
    """Send `units` of `asset`, or all that is free."""

    model_config = closed("units", "all")

    address: str
    asset: str = "lovelace"
    units: Units = absent("How much.")
    all: Literal[True] = absent("Everything.")


class LeftBehind(BaseModel):
    """What an order to send everything left where it is: coins with tokens of which nothing may leave.

    `assets` names the first eight of them; `detail` tells why, and how to come by the ADA.
    """

    coins: int
    lovelace: Units
    assets: list[str]
    detail: str


class Transfer(Payment):
    """The order's payment. `outputs` are what leaves."""

    left_behind: LeftBehind = absent("There when everything was to be sent, and some of it may not leave.")


class AssetBalance(BaseModel):
    asset: str
    available: Units
    held: Units
    total: Units


class CoinCounts(BaseModel):
    available: int
    reserved: int
    pending: int
    locked: int
    missing: int


class ChainStatus(BaseModel):
    slot: int | None
    tip_height: int | None
    tip_slot: int | None
    tip_hash: str | None
    problem: str | None


class Wallet(BaseModel):
    """`assets`, `coins` and `frozen_by` are null for a token that only pays: they tell what other apps do."""

    network: str
    address: str
    assets: list[AssetBalance] | None
    coins: CoinCounts | None
    frozen_by: Annotated[list[Hex] | None, Field(description="What spent coins elsewhere, and nobody has thawed.")]
    chain: ChainStatus


class UtxoDetails(BaseModel):
    ref: str
    lovelace: Units
    assets: Amounts
    state: Literal["available", "reserved", "pending", "locked", "missing"]
    reserved_for: str | None


class Utxos(BaseModel):
    utxos: list[UtxoDetails]


class UnfreezeResult(BaseModel):
    tx: str | None
    txs: list[str]


class PauseWallet(Closed):
    """Stop all signing."""

    reason: str = absent("Why: it is recorded, and told to who is refused.")


class PauseStatus(BaseModel):
    """Whether signing is paused. `by` and `reason` are told to those who read the books or operate."""

    paused: bool
    since: Time | None
    by: str | None
    reason: str | None
    already: bool = absent("There, and true, when it was paused before: all this is of that pause, which stands.")
