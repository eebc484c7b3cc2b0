"""Double entry: every movement of units as an entry whose postings sum to zero per asset.

Debits are positive. Accounts: `wallet` (ours and free), `held` (ours and reserved for payments), `fees`,
`merchant:ORIGIN` (spent there), `prepaid:ORIGIN` (paid there for what is still to come: a `use` moves it on as it
is used up, an `unuse` back) and `external` (where deposits come from and what the operator sends goes to). Entries
are only ever added; a rollback adds the contrary entry.

wallet + held equals what the chain shows at our address, to the unit, when nothing is in flight.
May import: the standard library, core.money. Never: writes anything (store does).
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

from payagent.core.money import LOVELACE, MAX_UNITS

Kind = Literal[
    "deposit", "undeposit", "foreign", "unforeign", "reserve", "post", "reverse", "release", "use", "unuse"
]
Units = Mapping[str, int]

WALLET, HELD, FEES, EXTERNAL = "wallet", "held", "fees", "external"


def merchant_account(origin: str) -> str:
    return f"merchant:{origin}"


def prepaid_account(origin: str) -> str:
    return f"prepaid:{origin}"


def spending_account(origin: str | None, is_prepaid: bool) -> str:
    """Where a payment's money goes: the merchant, what it owes us, or out of the wallet."""
    if origin is None:
        return EXTERNAL
    return prepaid_account(origin) if is_prepaid else merchant_account(origin)


class Posting(NamedTuple):
    account: str
    asset: str
    units: int


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry. Making one that does not balance raises ValueError: it would be a bug of ours."""

    kind: Kind
    postings: tuple[Posting, ...]

    def __post_init__(self) -> None:
        sums: dict[str, int] = {}
        for posting in self.postings:
            sums[posting.asset] = sums.get(posting.asset, 0) + posting.units
        if not self.postings or any(sums.values()):
            raise ValueError(f"a {self.kind} entry that does not balance: {sums}")


def deposit(units: Units) -> Entry:
    """Units arrived at our address in a transaction that is not ours."""
    return _transfer("deposit", EXTERNAL, WALLET, units)


def undeposit(units: Units) -> Entry:
    """A deposit's transaction is on no chain any more."""
    return _transfer("undeposit", WALLET, EXTERNAL, units)


def foreign(units: Units) -> Entry:
    """Coins of ours were spent by a transaction that is not ours. What it gave back to us is a deposit."""
    return _transfer("foreign", WALLET, EXTERNAL, units)


def unforeign(units: Units) -> Entry:
    """Somebody else's transaction is on no chain any more: the coins are ours again."""
    return _transfer("unforeign", EXTERNAL, WALLET, units)


def reserve(hold: Units) -> Entry:
    return _transfer("reserve", WALLET, HELD, hold)


def release(hold: Units, fee_lovelace: int = 0) -> Entry:
    """Nothing was bought: the hold comes back, less the fee of the transaction that took it back, if one did."""
    return _end_hold("release", hold, {}, fee_lovelace, WALLET)


def post(hold: Units, spent: Units, fee_lovelace: int, account: str) -> Entry:
    """The payment is confirmed: what left the wallet goes to its account, the rest of the hold comes back.

    `spent` is what the outputs took (riding ADA included, fee not).
    """
    return _end_hold("post", hold, spent, fee_lovelace, account)


def use(origin: str, units: Units) -> Entry | None:
    """What was prepaid is used up: it is spent now. Units below zero come back; None when nothing moves."""
    moved = {asset: n for asset, n in units.items() if n}
    if not moved:
        return None
    kind: Kind = "use" if all(n > 0 for n in moved.values()) else "unuse"
    return _transfer(kind, prepaid_account(origin), merchant_account(origin), moved)


def reverse(entry: Entry) -> Entry:
    """The contrary of a posting whose block was lost: the hold is back."""
    return Entry("reverse", tuple(Posting(p.account, p.asset, -p.units) for p in entry.postings))


def add(values: Iterable[Units]) -> dict[str, int]:
    """Per-asset sum."""
    total: dict[str, int] = {}
    for value in values:
        for asset, units in value.items():
            total[asset] = total.get(asset, 0) + units
    return total


def _end_hold(kind: Kind, hold: Units, spent: Units, fee_lovelace: int, account: str) -> Entry:
    """A hold is over: into `account` what was spent, into the fees the fee, and the rest into the wallet again."""
    lines = [Posting(HELD, asset, -units) for asset, units in hold.items()]
    lines += [Posting(account, asset, units) for asset, units in spent.items()]
    if fee_lovelace:
        lines.append(Posting(FEES, LOVELACE, fee_lovelace))
    left = dict(hold)
    for line in lines[len(hold) :]:
        left[line.asset] = left.get(line.asset, 0) - line.units
    lines += [Posting(WALLET, asset, units) for asset, units in left.items() if units]
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
    """Units of one asset, as postings hold them: several coins together may hold more of a token than 2^63-1."""
    while abs(units) > MAX_UNITS:
        yield (part := MAX_UNITS if units > 0 else -MAX_UNITS)
        units -= part
    yield units
