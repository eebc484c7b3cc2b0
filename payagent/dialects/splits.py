"""Revenue share: turns a 402's split list into the exact outputs that the transaction must pay.

The merchants' documents leave the form of the list open. A wrong reading loses the money, because the merchant
verifies every output. So a list that is not understood in full is refused, with what was read.

Modes:
- `additional`: payTo gets the amount, the splits come on top.
- `inclusive`: the splits are taken out of the amount.
- `outputs`: the list is the whole set of outputs, includes payTo, and sums to the amount.

Never: rounds, merges, drops or guesses an entry.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from payagent.core.address import Address, parse_address
from payagent.core.invoice import OUTPUTS_MAX, Output, SplitMode, check_outputs
from payagent.core.money import LOVELACE, check_supply, parse_asset, parse_units
from payagent.core.problems import Refused
from payagent.dialects.http_wire import Reading, show

MODES: dict[str, SplitMode] = {"additional": "additional", "inclusive": "inclusive", "outputs": "outputs"}

_ADDRESS_FIELDS = ("address", "to", "payTo")
_UNITS_FIELDS = ("amountUnits", "amount", "units", "lovelace")
_ASSET_FIELDS = ("asset", "currency")
_KNOWN = frozenset((*_ADDRESS_FIELDS, *_UNITS_FIELDS, *_ASSET_FIELDS, "role"))
_ROLE_MAX = 64


@dataclass(frozen=True, slots=True)
class Share:
    """One entry of a split list."""

    address: Address
    units: int


@dataclass(frozen=True, slots=True)
class SplitForm:
    """One split list of an invoice, with the mode that it states. `name` is its field in the 402."""

    name: str
    mode: SplitMode | None
    shares: tuple[Share, ...]

    def __str__(self) -> str:
        shares = ", ".join(f"{share.address}={share.units}" for share in self.shares)
        return f"{self.name} ({self.mode or 'no mode'}): [{shares}]"


@dataclass(frozen=True, slots=True)
class InvoiceAmount:
    """The invoice's amount before any split."""

    pay_to: Address
    asset: str
    units: int


def read_form(name: str, value: object, mode: object, asset: str, reading: Reading) -> SplitForm:
    """Parse one split list: a list of entries, or an object with `outputs` and at most one mode.

    `mode` is the mode stated beside a bare list (Flux's `splitMode`), or None.
    """
    if isinstance(value, dict):
        modes = (mode, value.get("mode"), value.get("splitMode"))
        stated = [stated_mode for stated_mode in modes if stated_mode is not None]
        if value.keys() - {"mode", "splitMode", "outputs"} or "outputs" not in value or len(stated) > 1:
            raise Refused("split_ambiguous", f"{name} is {show(value)}")
        mode = stated[0] if stated else None
        value = value["outputs"]
    if not isinstance(value, list):
        raise Refused("split_ambiguous", f"{name} is {show(value)}, not a list of outputs")
    if len(value) > OUTPUTS_MAX:
        raise Refused(
            "invoice_invalid/too_many_outputs",
            f"{name} has {len(value)} entries, the maximum is {OUTPUTS_MAX}",
        )
    shares = tuple(_read_share(f"{name}[{index}]", entry, asset, reading) for index, entry in enumerate(value))
    return SplitForm(name, _read_mode(name, mode), shares)


def resolve_outputs(amount: InvoiceAmount, forms: Sequence[SplitForm], reading: Reading) -> tuple[Output, ...]:
    """Return the outputs of the invoice, pay_to first. Refused: `split_ambiguous` if the forms disagree.

    Each form is resolved on its own. Its mode is the first of: the mode that it states; `outputs` if it lists
    payTo; the mode that the other form states; the merchant's configured mode.
    """
    stated = {form.mode for form in forms if form.mode}
    fallback = stated.pop() if len(stated) == 1 else reading.split_mode
    candidates = [_resolve(amount, form, fallback) for form in forms]
    if not candidates:
        candidates = [(Output("pay_to", amount.pay_to, amount.asset, amount.units),)]
    if any(_as_set(candidate) != _as_set(candidates[0]) for candidate in candidates):
        raise Refused("split_ambiguous", "the split forms disagree: " + "; ".join(map(str, forms)))
    outputs = check_outputs(candidates[0], reading.own)
    check_supply(amount.asset, sum(output.units for output in outputs), "the sum of all outputs")
    return outputs


def _as_set(outputs: tuple[Output, ...]) -> list[tuple[str, bytes, int]]:
    return sorted((output.role, output.address.raw, output.units) for output in outputs)


def _read_mode(name: str, mode: object) -> SplitMode | None:
    if mode is None:
        return None
    if not isinstance(mode, str) or mode not in MODES:
        raise Refused("split_ambiguous", f"{name} states the mode {show(mode)}; the modes are {', '.join(MODES)}")
    return MODES[mode]


def _read_share(name: str, entry: object, asset: str, reading: Reading) -> Share:
    if not isinstance(entry, dict) or entry.keys() - _KNOWN:
        raise Refused("split_ambiguous", f"{name} is {show(entry)}")
    address_field = _only(name, entry, _ADDRESS_FIELDS)
    units_field = _only(name, entry, _UNITS_FIELDS)
    role = entry.get("role")
    if role is not None and (not isinstance(role, str) or len(role) > _ROLE_MAX):
        raise Refused("split_ambiguous", f"{name} has the role {show(role)}")
    _check_asset(name, entry, units_field, asset)
    stated = entry[units_field]
    if isinstance(stated, str) and stated.endswith("%"):
        raise Refused("split_ambiguous", f"{name} is a percentage: {show(entry)}")
    return Share(
        parse_address(entry[address_field], reading.network),
        check_supply(asset, parse_units(stated, f"{name}.{units_field}"), name),
    )


def _only(name: str, entry: Mapping[str, object], fields: tuple[str, ...]) -> str:
    present = [field for field in fields if field in entry]
    if len(present) != 1:
        raise Refused("split_ambiguous", f"{name} needs exactly one of {', '.join(fields)}: {show(entry)}")
    return present[0]


def _check_asset(name: str, entry: Mapping[str, object], units_field: str, asset: str) -> None:
    for field in _ASSET_FIELDS:
        if entry.get(field) is not None and parse_asset(entry[field]) != asset:
            raise Refused("split_ambiguous", f"{name} is in another asset than the invoice: {show(entry)}")
    if units_field == LOVELACE and asset != LOVELACE:
        raise Refused("split_ambiguous", f"{name} is in lovelace, the invoice is not: {show(entry)}")


def _resolve(amount: InvoiceAmount, form: SplitForm, fallback: SplitMode | None) -> tuple[Output, ...]:
    if not form.shares:
        return (Output("pay_to", amount.pay_to, amount.asset, amount.units),)
    splits = [share for share in form.shares if share.address.raw != amount.pay_to.raw]
    pay_to_shares = [share.units for share in form.shares if share.address.raw == amount.pay_to.raw]
    mode = _settle_mode(form, bool(pay_to_shares), fallback)
    sum_units = sum(share.units for share in form.shares)
    if mode == "outputs":
        if len(pay_to_shares) != 1 or sum_units != amount.units:
            why = f"payTo must be in the list once and the list sum to {amount.units}"
            raise Refused("split_ambiguous", f"{why}; read {form}")
        pay_to_units = pay_to_shares[0]
    elif pay_to_shares:
        raise Refused("split_ambiguous", f"payTo is among its own splits, with mode {mode}; read {form}")
    else:
        pay_to_units = amount.units if mode == "additional" else amount.units - sum_units
    if pay_to_units <= 0:
        raise Refused("split_ambiguous", f"the splits leave {pay_to_units} to payTo; read {form}")
    pay_to = Output("pay_to", amount.pay_to, amount.asset, pay_to_units)
    return (pay_to, *(Output("split", share.address, amount.asset, share.units) for share in splits))


def _settle_mode(form: SplitForm, lists_pay_to: bool, fallback: SplitMode | None) -> SplitMode:
    if form.mode is not None:
        return form.mode
    if lists_pay_to:
        return "outputs"
    if fallback is None:
        raise Refused("split_ambiguous", f"no split mode is stated or configured; read {form}")
    return fallback
