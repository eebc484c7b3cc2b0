"""Every refusal that payagent gives, as one table: stable code, meaning for the money, what to do next.

The API renders a row as RFC 9457 problem+json, the CLI as text with the row's exit code, and
docs/problems.md is generated from it. May import: the standard library. Never: raises for control flow
inside core; a `Refused` always ends at the person or program that asked.
"""

from dataclasses import dataclass

_NOTHING = "Nothing was signed and nothing is held."


@dataclass(frozen=True, slots=True)
class Problem:
    """One row: `status` is the HTTP status, `exit_code` the CLI's, `money` and `fix` are told."""

    status: int
    exit_code: int
    title: str
    fix: str
    money: str = _NOTHING
    retryable: bool = False


class Refused(Exception):  # noqa: N818  the design's word for what it is
    """payagent will not do what was asked. `code` names a row of PROBLEMS; `context` is shown, so no secrets."""

    def __init__(self, code: str, detail: str, **context: object) -> None:
        if code not in PROBLEMS:
            raise KeyError(f"problem code {code!r} has no row in PROBLEMS")
        super().__init__(f"{code}: {detail}")
        self.code = code
        self.detail = detail
        self.context = context

    @property
    def problem(self) -> Problem:
        return PROBLEMS[self.code]


_SENDER = "Tell the merchant: its 402 is not one that payagent can pay safely."
_ADDRESS = "Only key addresses of CIP-19 types 0 and 6 on the configured network are paid. " + _SENDER

PROBLEMS: dict[str, Problem] = {
    "address_bad_checksum": Problem(422, 3, "The address is damaged", _ADDRESS),
    "address_byron": Problem(422, 3, "A Byron address", _ADDRESS),
    "address_mixed_case": Problem(422, 3, "The address is not in lower case", _ADDRESS),
    "address_not_text": Problem(422, 3, "No address", _ADDRESS),
    "address_own": Problem(422, 3, "The invoice pays this wallet itself", _SENDER),
    "address_pointer": Problem(422, 3, "A pointer address", _ADDRESS),
    "address_script": Problem(422, 3, "A script address", _ADDRESS),
    "address_stake": Problem(422, 3, "A stake address cannot be paid", _ADDRESS),
    "address_unknown_type": Problem(422, 3, "An address of a type unknown to CIP-19", _ADDRESS),
    "address_wrong_length": Problem(422, 3, "The address has the wrong length for its type", _ADDRESS),
    "address_wrong_network": Problem(422, 3, "An address of another network", _ADDRESS),
    "address_wrong_prefix": Problem(422, 3, "The address has the wrong prefix", _ADDRESS),
    "amount_not_understood": Problem(422, 3, "An amount that is not a whole number of units", _SENDER),
    "amount_out_of_range": Problem(422, 3, "An amount outside what the chain can hold", _SENDER),
    "asset_not_allowed": Problem(
        403, 6, "No limit is set for this asset", "Add the asset with a limit of its own to [limits.assets]."
    ),
    "asset_not_understood": Problem(422, 3, "An asset that is not named by its policy and name", _SENDER),
    "bad_request": Problem(400, 2, "The request is not understood", "Correct the request; see /openapi.json."),
    "body_not_understood": Problem(422, 3, "The 402's body is not an invoice", _SENDER),
    "body_too_big": Problem(413, 2, "The body is too big", "Send the 402 as received; 64 KiB is the bound."),
    "browser_refused": Problem(
        403,
        5,
        "A web page may not use this API",
        "Call it from a program, without Origin and Sec-Fetch-Site headers.",
    ),
    "chain_not_ready": Problem(
        503,
        4,
        "The chain cannot be read well enough to pay",
        "Wait; `payagent doctor` says why.",
        retryable=True,
    ),
    "chain_not_understood": Problem(422, 3, "The invoice's chain is not known", _SENDER),
    "chain_wrong": Problem(
        422, 3, "The invoice is for another chain", "Use a payagent that is configured for that network."
    ),
    "clock_skew": Problem(
        503,
        4,
        "The local clock and the chain's disagree by more than 120 s",
        "Set the machine's clock; nothing is signed until they agree.",
        retryable=True,
    ),
    "config_invalid": Problem(
        400, 2, "The configuration is not valid", "Correct the named key in the named file."
    ),
    "daemon_not_running": Problem(
        503,
        4,
        "payagent is not running: start it with `payagent serve`",
        "Start it with `payagent serve`, then repeat the command.",
        money="Nothing was asked of it; what it was doing before is durable and goes on when it starts.",
        retryable=True,
    ),
    "daemon_silent": Problem(
        504,
        4,
        "payagent did not answer as it should",
        "Look at `payagent payments list`. A `pay` may be repeated: it finds the payment that it made.",
        money="It may have taken the order; what it took is durable and goes on.",
        retryable=True,
    ),
    "decimals_mismatch": Problem(
        422,
        3,
        "The invoice's decimals are not the asset's",
        "Check the asset's decimals in the config. " + _SENDER,
    ),
    "fee_too_high": Problem(500, 1, "The fee would exceed its cap", "This is a bug or a lie about parameters."),
    "file_exists": Problem(
        409, 2, "There is such a file already", "Nothing is overwritten: give another path, or move the file away."
    ),
    "forbidden": Problem(403, 5, "The token may not do this", "Use a token with the needed scope."),
    "host_refused": Problem(
        403, 5, "The Host header names no loopback address", "Call it as localhost, 127.0.0.1 or [::1]."
    ),
    "idempotency_key_invalid": Problem(
        400, 2, "The idempotency key is not valid", "1 to 255 visible ASCII characters."
    ),
    "idempotency_key_reused": Problem(
        422,
        6,
        "The idempotency key belongs to another request",
        "Use a new key for a new purchase.",
        money="The first request's payment stands as it was; nothing new was signed.",
    ),
    "illegal_transition": Problem(
        409,
        1,
        "The payment is not in a state for that",
        "Look at the payment first.",
        money="Nothing has changed.",
    ),
    "internal_error": Problem(
        500,
        1,
        "A bug in payagent",
        "Repeat the same request: a payment that exists is found, not made again.",
        money="What was durable before the error stands; see `payagent payments list`.",
        retryable=True,
    ),
    "invoice_contradiction": Problem(422, 3, "The 402 says two different things", _SENDER),
    "invoice_expired": Problem(
        422,
        3,
        "The invoice is over or too near its end to be paid safely",
        "Ask the merchant for a new invoice.",
    ),
    "invoice_id_invalid": Problem(422, 3, "The invoice id has characters or a length that are not safe", _SENDER),
    "invoice_incomplete": Problem(422, 3, "The invoice lacks a field that a payment needs", _SENDER),
    "invoice_paid_elsewhere": Problem(
        409,
        6,
        "The invoice already belongs to another intent",
        "Use that payment's headers, or ask the merchant for a new invoice.",
        money="The other payment stands; nothing new was signed.",
    ),
    "json_not_understood": Problem(422, 3, "The body is not strict JSON", _SENDER),
    "keystore_exists": Problem(
        409,
        2,
        "There is a keystore already",
        "Nothing is overwritten: give another path, or move the file away.",
    ),
    "keystore_invalid": Problem(
        400,
        5,
        "The keystore cannot be opened",
        "Check the passphrase, the file's mode (0600) and that it is whole.",
    ),
    "keystore_locked": Problem(503, 5, "The keystore is locked", "Give the passphrase; see config keystore.*."),
    "limit_exceeded": Problem(403, 6, "Above a limit", "Raise the named limit, or wait until it frees up."),
    "media_type_refused": Problem(
        415, 2, "The body is not declared as JSON", "Send it with Content-Type: application/json."
    ),
    "merchant_not_allowed": Problem(403, 6, "The origin is not a configured merchant", "Add it to [merchants]."),
    "merchant_unreachable": Problem(
        502,
        4,
        "The merchant cannot be reached",
        "Try again later.",
        money="No money was moved by this.",
        retryable=True,
    ),
    "method_not_allowed": Problem(
        405, 2, "The path does not take this method", "See /openapi.json.", money="Nothing has changed."
    ),
    "mixed_dialects": Problem(422, 3, "The 402 mixes two dialects", _SENDER),
    "mnemonic_invalid": Problem(
        400, 2, "The recovery words are not valid", "24 English BIP-39 words, checksum right."
    ),
    "needs_consolidation": Problem(
        409,
        7,
        "There is enough money, in too many small coins for one transaction",
        "Run `payagent wallet send` to your own address with part of it, or fund the wallet with one larger coin.",
    ),
    "not_an_invoice": Problem(
        422,
        3,
        "A 402 that is no invoice",
        "Present the proof of the earlier payment again, or call the merchant anew.",
    ),
    "not_enough_funds": Problem(
        409,
        7,
        "Not enough free funds",
        "Fund the wallet; `payagent wallet show` says what is held.",
        retryable=True,
    ),
    "not_found": Problem(404, 2, "No such thing", "Check the id.", money="Nothing has changed."),
    "not_signed_yet": Problem(
        503,
        8,
        "The payment is admitted and not signed yet",
        "Repeat the same request: it finds this payment.",
        money="Its money is held; nothing has left.",
        retryable=True,
    ),
    "output_below_minimum": Problem(
        422,
        3,
        "An output below what the ledger accepts",
        "The merchant must ask for more in that output. " + _SENDER,
    ),
    "outputs_too_many": Problem(422, 3, "Too many outputs", "16 outputs are the bound. " + _SENDER),
    "provider_untrusted": Problem(
        503,
        4,
        "The provider's answers contradict what must hold",
        "Check chain.providers; `payagent doctor`.",
    ),
    "rate_limited": Problem(429, 4, "Too many requests at once", "Try again after Retry-After.", retryable=True),
    "self_transfer_invalid": Problem(
        400, 2, "The transfer cannot be built as asked", "See `payagent wallet send --help`."
    ),
    "split_not_understood": Problem(
        422,
        3,
        "The revenue share is not understood in full",
        "Set split_mode for the merchant, or tell it. " + _SENDER,
    ),
    "store_failed": Problem(
        503,
        1,
        "The ledger cannot be written",
        "Make room on the disk or mend it, then restart: nothing is signed meanwhile.",
        money="What was durable before stands.",
        retryable=True,
    ),
    "terms_changed": Problem(
        409,
        6,
        "The same invoice id came with other terms",
        "Do not pay it; ask the merchant.",
        money="What was signed for the first terms stands; nothing new was signed.",
    ),
    "transaction_too_big": Problem(409, 7, "The transaction would be too big", "Consolidate the wallet first."),
    "unauthorized": Problem(401, 5, "No valid token", "Send `Authorization: Bearer <app token>`."),
    "units_not_understood": Problem(
        400, 2, "Not an amount", 'Write it as "5 ADA", "0.25 ADA" or "250000 lovelace".'
    ),
    "wallet_address_required": Problem(
        422,
        3,
        "The merchant wants X-Wallet-Address",
        "Repeat the call with X-Wallet-Address; see `payagent wallet address`.",
    ),
}
