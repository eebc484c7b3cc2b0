"""Double-entry bookkeeping: each movement of units is an entry whose postings sum to zero per asset.

Debits are positive. The accounts:
- `wallet`: ours and available. That of the wallet's account 1 is `wallet/1`, and so on.
- `held`: ours and held for payments; `held/1` and so on.
- `fees`: network fees.
- `merchant:ORIGIN`: spent at a merchant.
- `prepaid:ORIGIN`: paid to a merchant for later use. A `use` moves units to
  `merchant:ORIGIN`, a `use_reversed` back.
- `channel:ORIGIN`: locked in a channel at a merchant, less what its vouchers promise. A `use` moves what a voucher
  adds to `merchant:ORIGIN`.
- `external`: the source of deposits and the target of the operator's transfers.

Entries are append-only; a rollback adds the reverse entry. When nothing is in flight, wallet + held equals the
units that the chain shows at our address.

Never: writes anything (`store` does).
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

from payagent.core.money import LOVELACE, MAX_UNITS

Kind = Literal[
    "deposit",
    "deposit_reversed",
    "external_spend",
    "external_spend_reversed",
    "reserve",
    "post",
    "post_reversed",
    "release",
    "use",
    "use_reversed",
]
Units = Mapping[str, int]

WALLET, HELD, FEES, EXTERNAL = "wallet", "held", "fees", "external"


def wallet_account(number: int) -> str:
    """What is available in an account of the wallet."""
    return f"{WALLET}/{number}" if number else WALLET


def held_account(number: int) -> str:
    """What an account of the wallet holds for payments."""
    return f"{HELD}/{number}" if number else HELD


def general_account(name: str) -> str:
    """`wallet` for that of any account of the wallet, and so for `held`. Every other name is returned as it is."""
    general, _, number = name.partition("/")
    return general if number and general in (WALLET, HELD) else name


def merchant_account(origin: str) -> str:
    return f"merchant:{origin}"


def prepaid_account(origin: str) -> str:
    return f"prepaid:{origin}"


def channel_account(origin: str) -> str:
    return f"channel:{origin}"


def in_channels(balances: Iterable[Mapping[str, str]]) -> list[dict[str, str]]:
    """What is in channels and not promised: those rows of a balance in JSON, each with its merchant's `origin`."""
    prefix = channel_account("")
    rows = (row for row in balances if row["account"].startswith(prefix) and row["units"] != "0")
    return [{**row, "origin": row["account"].removeprefix(prefix)} for row in rows]


def spending_account(origin: str | None, is_prepaid: bool) -> str:
    """The account that a payment debits: `prepaid:` or `merchant:` of its origin, or `external` without one."""
    if origin is None:
        return EXTERNAL
    return prepaid_account(origin) if is_prepaid else merchant_account(origin)


class Posting(NamedTuple):
    account: str
    asset: str
    units: int


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry. Raises ValueError if it does not balance, which is always a bug of payagent."""

    kind: Kind
    postings: tuple[Posting, ...]

    def __post_init__(self) -> None:
        sums: dict[str, int] = {}
        for posting in self.postings:
            sums[posting.asset] = sums.get(posting.asset, 0) + posting.units
        if not self.postings or any(sums.values()):
            raise ValueError(f"a {self.kind} entry that does not balance: {sums}")


def deposit(units: Units, of: int = 0) -> Entry:
    """Units arrived at our address in an external transaction. `of`: the account of the wallet, also below."""
    return _transfer("deposit", EXTERNAL, wallet_account(of), units)


def deposit_reversed(units: Units, of: int = 0) -> Entry:
    """A deposit was rolled back."""
    return _transfer("deposit_reversed", wallet_account(of), EXTERNAL, units)


def external_spend(units: Units, of: int = 0) -> Entry:
    """An external spend took UTxOs of ours. Outputs of it that pay us are a deposit."""
    return _transfer("external_spend", wallet_account(of), EXTERNAL, units)


def external_spend_reversed(units: Units, of: int = 0) -> Entry:
    """An external spend was rolled back: its UTxOs are ours again."""
    return _transfer("external_spend_reversed", EXTERNAL, wallet_account(of), units)


def reserve(hold: Units, of: int = 0) -> Entry:
    return _transfer("reserve", wallet_account(of), held_account(of), hold)


def release(hold: Units, fee_lovelace: int = 0, of: int = 0) -> Entry:
    """Return the hold of a payment that bought nothing, less the fee of its cancel transaction, if any."""
    return _set_hold("release", hold, {}, fee_lovelace, wallet_account(of), of)


def post(hold: Units, spent: Units, fee_lovelace: int, account: str, of: int = 0) -> Entry:
    """Post a confirmed payment: the units spent go to `account`, the rest of the hold returns to the wallet.

    `spent` is the sum of the outputs, min-ADA included, without the fee.
    """
    return _set_hold("post", hold, spent, fee_lovelace, account, of)


def use(origin: str, units: Units) -> Entry | None:
    """Move prepaid units to spent. Negative units move back. None if nothing moves."""
    return _use(prepaid_account(origin), origin, units)


def use_channel(origin: str, units: Units) -> Entry | None:
    """Move units of a channel to spent, as a voucher promises them. As `use`."""
    return _use(channel_account(origin), origin, units)


def _use(source: str, origin: str, units: Units) -> Entry | None:
    moved = {asset: n for asset, n in units.items() if n}
    if not moved:
        return None
    kind: Kind = "use" if all(n > 0 for n in moved.values()) else "use_reversed"
    return _transfer(kind, source, merchant_account(origin), moved)


def post_reversed(entry: Entry) -> Entry:
    """Reverse an entry whose block was rolled back, which restores its hold."""
    return Entry("post_reversed", tuple(Posting(p.account, p.asset, -p.units) for p in entry.postings))


def add(values: Iterable[Units]) -> dict[str, int]:
    """Per-asset sum."""
    total: dict[str, int] = {}
    for value in values:
        for asset, units in value.items():
            total[asset] = total.get(asset, 0) + units
    return total


def _set_hold(kind: Kind, hold: Units, spent: Units, fee_lovelace: int, account: str, of: int) -> Entry:
    """End a hold: `spent` goes to `account`, the fee to `fees`, the rest back to `wallet`."""
    lines = [Posting(held_account(of), asset, -units) for asset, units in hold.items()]
    lines += [Posting(account, asset, units) for asset, units in spent.items()]
    if fee_lovelace:
        lines.append(Posting(FEES, LOVELACE, fee_lovelace))
    left = dict(hold)
    for line in lines[len(hold) :]:
        left[line.asset] = left.get(line.asset, 0) - line.units
    lines += [Posting(wallet_account(of), asset, units) for asset, units in left.items() if units]
    return Entry(kind, tuple(lines))


def _transfer(kind: Kind, source: str, target: str, units: Units) -> Entry:
    lines = [
        Posting(account, asset, sign * part)
        for asset, n in units.items()
        for part in _parts(n)
        for account, sign in ((source, -1), (target, 1))
    ]
    return Entry(kind, tuple(lines))


def _parts(units: int) -> Iterator[int]:
    """Split units into postings of at most 2^63-1: several UTxOs together may hold more of a token."""
    while abs(units) > MAX_UNITS:
        yield (part := MAX_UNITS if units > 0 else -MAX_UNITS)
        units -= part
    yield units
