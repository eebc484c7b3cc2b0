"""Merchants as they are configured, in the config file and at run time, in the form that the agent works with.

May import: core, settings, store, agent.terms. Never: reads a file; decides who may be paid.
"""

from collections.abc import Mapping
from dataclasses import replace

from payagent.agent.terms import AutoTopup, MerchantTerms, Terms, TopupRequest
from payagent.core.guards import Pin, Rules
from payagent.core.invoice import Role
from payagent.core.network import Network
from payagent.settings import Merchant, read_merchant
from payagent.store import merchants
from payagent.store.merchants import MerchantRow
from payagent.store.unit import Connection


def rules_of(merchant: Merchant) -> Rules:
    """What the guards hold a merchant to."""
    by_role: tuple[tuple[Role, tuple[str, ...]], ...] = (("pay_to", merchant.pay_to), ("split", merchant.split_to))
    return Rules(
        first_use=merchant.pin == "first_use",
        filed=frozenset(Pin(role, address) for role, addresses in by_role for address in addresses),
        drift_percent=merchant.drift_percent,
        stop_after=merchant.stop_after,
        in_flight_max=merchant.in_flight_max,
    )


def merchant_terms(name: str, merchant: Merchant, api_key: str | None) -> MerchantTerms:
    topup = merchant.topup
    unit, below = topup.below
    return MerchantTerms(
        name=name,
        origin=merchant.origin,
        known_as=frozenset(merchant.known_as),
        partner=merchant.partner,
        split_mode=merchant.split_mode,
        ready=merchant.ready,
        timeout_s=merchant.timeout_s,
        proof=merchant.proof,
        request_commitment=merchant.request_commitment,
        api_key=api_key,
        alert_below=merchant.alert_below,
        rules=rules_of(merchant),
        topup_request=TopupRequest(topup.method, topup.path, topup.body) if topup.path else None,
        topup_per_day_lovelace=topup.per_day_lovelace,
        auto_topup=AutoTopup(unit, below, topup.to[1], topup.per_day_count) if below else None,
    )


def overlaid(filed: Terms, conn: Connection) -> Terms:
    """The terms of the config file, and over them the merchants that were added at run time: one of the file that
    has the name or the origin of one of these does not count.
    """
    rows = merchants.everybody(conn)
    names, origins = {row.name for row in rows}, {row.origin for row in rows}
    known: Mapping[str, MerchantTerms] = {
        origin: merchant
        for origin, merchant in filed.merchants.items()
        if merchant.name not in names and origin not in origins
    }
    added = {row.origin: _of_row(row, filed.network) for row in rows}
    return replace(filed, merchants={**known, **added})


def _of_row(row: MerchantRow, network: Network) -> MerchantTerms:
    merchant = read_merchant(row.name, row.settings, network.name)
    return replace(merchant_terms(row.name, merchant, None), is_filed=False)
