"""Example 402s of the T Backend, addresses, and what payagent knows before it reads a 402."""

from typing import Any

from kit.hostile_402s import TOKEN, TOKEN_DECIMALS, address
from payagent.core.invoice import Invoice, SplitMode
from payagent.core.network import NETWORKS
from payagent.dialects import HttpResponse, Reading, make_response, read_offers

PREPROD = NETWORKS["preprod"]
PAY_TO = address(PREPROD, 0, 0x50)
ANNA = address(PREPROD, 6, 0x51)
BERT = address(PREPROD, 0, 0x52)
NOW_MS = 1_795_527_200_123


def reading(split_mode: SplitMode | None = None, network: str = "preprod") -> Reading:
    return Reading(
        origin="https://api.example.com",
        network=NETWORKS[network],
        split_mode=split_mode,
        received_at_ms=NOW_MS,
        decimals={TOKEN: TOKEN_DECIMALS},
    )


def detail(**extra: Any) -> dict[str, Any]:
    """The T Backend's documented body, for 10 ADA."""
    return {
        "version": "0.1",
        "invoiceId": "inv-1",
        "chain": "cardano-preprod",
        "asset": "ADA",
        "amountUnits": "10000000",
        "decimals": 6,
        "payTo": PAY_TO,
        "timeout": 300,
        "extra": {"lovelace": True, "babel": False, "partner": "demo", "batchTarget": 100, **extra},
    }


def read(body: object, split_mode: SplitMode | None = None, headers: dict[str, str] | None = None) -> Invoice:
    return read_one(make_response(402, headers or {}, body), reading(split_mode))


def read_one(response: HttpResponse, reading: Reading) -> Invoice:
    """The invoice of a 402 that offers one."""
    (invoice,) = read_offers(response, reading)
    return invoice


def paid(invoice: Invoice) -> list[tuple[str, str, int]]:
    """Role, address and units of each output, in order."""
    return [(output.role, output.address.text, output.units) for output in invoice.outputs]
