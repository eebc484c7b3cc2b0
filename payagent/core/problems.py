"""The table of all refusals: stable code, what it means for the money, what to do next.

The API renders a row as RFC 9457 problem+json. The CLI prints it as text and exits with the row's exit code.
docs/problems.md is generated from it.

May import: the standard library.
Never: raises for control flow inside core. A `Refused` always reaches the person or program that asked.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

_NOTHING = "Nothing was signed and nothing is held for it."


@dataclass(frozen=True, slots=True)
class Problem:
    """One row: HTTP `status`, CLI `exit_code`, and the texts.

    `money` is empty if no payment was decided on: others may be in flight with their money held.
    """

    status: int
    exit_code: int
    title: str
    fix: str
    money: str = _NOTHING
    retryable: bool = False


class Refused(Exception):  # noqa: N818  the design's word for what it is
    """payagent refuses a request. `code` names a row of PROBLEMS. `context` is shown, so it holds no secrets."""

    def __init__(self, code: str, detail: str, **context: object) -> None:
        if code not in PROBLEMS:
            raise KeyError(f"problem code {code!r} has no row in PROBLEMS")
        super().__init__(f"{code}: {detail}")
        self.code = code
        self.detail = detail
        self.context = context
        self.money = self.problem.money

    def with_money(self, money: str) -> "Refused":
        """Return a copy with another money text. All callers of one commit may share the original object."""
        told = Refused(self.code, self.detail, **self.context)
        told.money = money
        return told

    @property
    def problem(self) -> Problem:
        return PROBLEMS[self.code]

    @property
    def message(self) -> str:
        """One text for people: what happened, what it means for the money, what to do next."""
        what = f"{self.problem.title}: {self.detail.rstrip('.')}."
        return " ".join(part for part in (what, self.money, self.problem.fix) if part)


@contextmanager
def own_order(**context: object) -> Iterator[None]:
    """Turn refusals of a merchant's invoice into `transfer_invalid`: inside, the operator made the order."""
    try:
        yield
    except Refused as refused:
        if refused.problem.exit_code != EXIT_INVOICE and refused.code != "transaction_too_big":
            raise
        raise Refused("transfer_invalid", refused.detail, **refused.context, **context) from None


EXIT_INVOICE = 3
"""The exit code of all problems with a merchant's 402."""
STILL_ASKED = "Nothing was signed; while it waits for a decision it counts against the limits."
_SENDER = "Tell the merchant: its 402 is not one that payagent can pay safely."
_ADDRESS = "Only key addresses of CIP-19 types 0 and 6 on the configured network are paid. " + _SENDER

PROBLEMS: dict[str, Problem] = {
    "approved_amount_exceeded": Problem(
        409,
        7,
        "The transaction would take more than a person was asked about",
        "The wallet's coins are too small by now: send part of it to its own address, and approve again.",
        money="Nothing was signed; the payment still waits for a decision.",
    ),
    "approval_required": Problem(
        403,
        8,
        "The payment is above what may leave without a person's word",
        "Wait for the decision, or have it made: payagent payments approve ID, or deny ID.",
        money="It counts against the limits until it is decided or its time is over; nothing was signed.",
        retryable=True,
    ),
    "address_bad_checksum": Problem(422, 3, "The address is damaged", _ADDRESS),
    "address_byron": Problem(422, 3, "A Byron address", _ADDRESS),
    "address_mixed_case": Problem(422, 3, "The address is not in lower case", _ADDRESS),
    "address_not_text": Problem(422, 3, "No address", _ADDRESS),
    "address_not_pinned": Problem(
        403,
        6,
        "The invoice pays an address that is not known of this merchant",
        "Ask the merchant, by another way than its 402, whether the address is its own. If it is, let the payment "
        "go on (payagent payments approve ID); from then on the address is known.",
        money=STILL_ASKED,
    ),
    "address_own": Problem(422, 3, "The invoice pays this wallet itself", _SENDER),
    "address_pointer": Problem(422, 3, "A pointer address", _ADDRESS),
    "address_script": Problem(422, 3, "A script address", _ADDRESS),
    "address_stake": Problem(422, 3, "A stake address cannot be paid", _ADDRESS),
    "address_unknown_type": Problem(422, 3, "An address of a type unknown to CIP-19", _ADDRESS),
    "address_wrong_length": Problem(422, 3, "The address has the wrong length for its type", _ADDRESS),
    "address_wrong_network": Problem(422, 3, "An address of another network", _ADDRESS),
    "address_wrong_prefix": Problem(422, 3, "The address has the wrong prefix", _ADDRESS),
    "already_decided": Problem(
        409,
        2,
        "The payment does not wait for a decision",
        "Look at it: payagent payments show ID. What is decided is not decided again.",
        money="What was decided before stands.",
    ),
    "already_running": Problem(
        409,
        2,
        "Another daemon has this wallet",
        "Stop it first: two daemons on one ledger or one keystore would not know of each other's payments.",
        money="",
    ),
    "amount_not_understood": Problem(422, 3, "An amount that is not a whole number of units", _SENDER),
    "amount_out_of_range": Problem(422, 3, "An amount outside what the chain can hold", _SENDER),
    "deposit_rolled_back": Problem(
        409,
        8,
        "The deposit that the payment spends is on no chain any more",
        "Nothing can be signed that would help: it ends by itself, as void, when no rollback reaches back to the "
        "last time limit of what was signed for it. If the deposit comes back, the payment goes on.",
        money="Its money stays held until then: what was signed can land, if the deposit comes back in time.",
    ),
    "app_ended": Problem(
        409,
        5,
        "The app that ordered it has no token that is good",
        "Order anew what is missing, by another app or after payagent app token NAME.",
        money="What its payments bought stands; nothing more is paid for it.",
    ),
    "approval_denied": Problem(
        403,
        3,
        "A person denied the payment",
        "Do not ask again without a word with the operator: for a while the same call is refused unasked.",
    ),
    "approval_timed_out": Problem(
        403,
        3,
        "Nobody decided on the payment in time",
        "Ask the operator to be at hand, and repeat the call: it is a new question.",
        retryable=True,
    ),
    "awaiting_approval": Problem(
        503,
        8,
        "A person has to decide on the payment",
        "Repeat the same call later: it finds this payment. To decide: payagent payments approve ID, or deny ID.",
        money="It counts against the limits until it is decided or its time is over; nothing was signed.",
        retryable=True,
    ),
    "app_exists": Problem(
        409,
        2,
        "An app has this name already",
        "Take another name, or give that app a new token: payagent app token NAME.",
        money="",
    ),
    "asset_not_allowed": Problem(
        403,
        6,
        "This asset may not be spent",
        "Give it a table in [[limits.assets]] of the config and start the daemon again; an app that is bound to "
        "some assets pays in no other.",
    ),
    "asset_not_understood": Problem(422, 3, "An asset that is not named by its policy and name", _SENDER),
    "attempt_expired": Problem(
        409,
        3,
        "No block took the transaction in its time, and it could not be replaced",
        "Nothing is to be done: payagent takes the coins back, and the payment ends as void.",
        money="Its money is held until the transaction that takes the coins back is deep enough in the chain.",
    ),
    "backup_invalid": Problem(
        422,
        2,
        "The file is no backup that can be relied on, or would be none",
        "Take another backup; `payagent ledger verify` tells what is wrong with a ledger that runs.",
        money="",
    ),
    "backup_not_written": Problem(
        500,
        2,
        "The backup or snapshot, or what is in it, could not be written",
        "Make room or name another place, and run the same command again: nothing is left of this one.",
        money="",
        retryable=True,
    ),
    "bad_request": Problem(
        400, 2, "The request is not understood", "Correct the request; see /openapi.json.", money=""
    ),
    "body_not_understood": Problem(422, 3, "The 402's body is not an invoice", _SENDER),
    "batch_in_progress": Problem(
        409,
        8,
        "Another payment for the same prepaid balance is under way",
        "Repeat the call itself, without a proof: it is served from the batch when that is paid.",
        retryable=True,
    ),
    "body_too_big": Problem(
        413, 2, "The body is too big", "Send the 402 as received; 64 KiB is the bound.", money=""
    ),
    "body_too_slow": Problem(
        408,
        2,
        "The body did not come in time",
        "Send it without pauses; it may be sent again.",
        money="",
        retryable=True,
    ),
    "browser_refused": Problem(
        403,
        5,
        "A web page may not use this API",
        "Call it from a program, without Origin and Sec-Fetch-Site headers.",
        money="",
    ),
    "chain_not_ready": Problem(
        503,
        4,
        "The chain cannot be read well enough to pay",
        "Wait: mostly it goes on by itself. `payagent doctor` looks at each provider.",
        retryable=True,
    ),
    "chain_not_understood": Problem(422, 3, "The invoice's chain is not known", _SENDER),
    "network_mismatch": Problem(
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
        400, 2, "The configuration is not valid", "Correct the named key in the named file.", money=""
    ),
    "daemon_not_running": Problem(
        503,
        4,
        "payagent is not running: start it with `payagent serve`",
        "Start it with `payagent serve`, then repeat the command. If it runs, it listens on another socket: where "
        "the config has no api.socket, that goes by $XDG_RUNTIME_DIR.",
        money="Nothing reached it now; what it had taken before is durable, and goes on when it starts.",
        retryable=True,
    ),
    "daemon_timeout": Problem(
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
    "extension_required": Problem(
        422,
        3,
        "The 402 requires an extension that payagent does not have",
        "Ask the merchant for a way to pay without it.",
    ),
    "fee_too_high": Problem(500, 1, "The fee would exceed its cap", "This is a bug or a lie about parameters."),
    "file_exists": Problem(
        409,
        2,
        "There is such a file already",
        "Nothing is overwritten: give another path, or move the file away.",
        money="",
    ),
    "forbidden": Problem(
        403,
        5,
        "The token may not do this",
        "Use a token with the needed scope; where an app has ended, payagent app token NAME lets it in again.",
        money="",
    ),
    "funds_pending": Problem(
        503,
        7,
        "The free funds do not suffice until change that is on its way is there",
        "Try again when the payments under way are in a block, mostly within a minute. `payagent wallet split` "
        "gives the wallet more coins, so that payments run side by side.",
        retryable=True,
    ),
    "external_spend": Problem(
        503,
        4,
        "Coins of the wallet were spent elsewhere",
        "Look the transaction up in an explorer. Stop whoever else has the wallet's words, or see operators.md if "
        "the data folder was rolled back. Then run `payagent wallet thaw`. If the words are stolen, send "
        "everything to a new wallet at once.",
    ),
    "external_spend_new": Problem(
        409,
        2,
        "Another transaction spent coins of the wallet meanwhile",
        "Look at it too, then thaw again: `payagent wallet thaw` shows all of them.",
        money="Nothing has changed: nothing is signed until the wallet is thawed.",
    ),
    "handed_over_expired": Problem(
        409,
        3,
        "The merchant did not broadcast the transaction in its time",
        "Nothing is to be done: payagent takes the coins back, and the payment ends as void.",
        money="Its money is held until the transaction that takes the coins back is deep enough in the chain.",
    ),
    "host_refused": Problem(
        403,
        5,
        "The Host header is not one of this machine",
        "Call it as localhost, 127.0.0.1 or [::1], or by a name that is in api.hosts.",
        money="",
    ),
    "idempotency_key_invalid": Problem(
        400, 2, "The idempotency key is not valid", "1 to 255 visible ASCII characters.", money=""
    ),
    "idempotency_key_reused": Problem(
        422,
        6,
        "The idempotency key belongs to another request",
        "Use a new key for a new purchase.",
        money="The first request's payment stands as it was; nothing new was signed.",
    ),
    "wrong_state": Problem(
        409,
        2,
        "It is not in a state for that",
        "Look at it first: `payagent payments show ID` tells of a payment, `payagent prepaid topups` of top-ups.",
        money="Nothing has changed.",
    ),
    "cancel_too_recent": Problem(
        503,
        8,
        "The purchase's earlier payment was cancelled a short while ago",
        "Try again in a minute: a new payment must spend what the cancel gave back, and that is in use.",
        money="The cancelled payment's money is back; nothing new was signed.",
        retryable=True,
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
    "invoice_paid_already": Problem(
        409,
        6,
        "The invoice has a payment already",
        "Pay it again in the same way: that finds its payment, whose headers serve the retry, and takes nothing.",
        money="That payment stands; nothing new was signed.",
    ),
    "invoice_paid_elsewhere": Problem(
        409,
        6,
        "The invoice already belongs to another intent",
        "Look at that payment (payagent payments show ID), or ask the merchant for a new invoice.",
        money="The other payment stands; nothing new was signed.",
    ),
    "invoice_too_big": Problem(
        422, 3, "The 402 is longer than a proof that repeats it may be", "8 KiB is the bound. " + _SENDER
    ),
    "json_not_understood": Problem(422, 3, "The body is not strict JSON", _SENDER),
    "keystore_exists": Problem(
        409,
        2,
        "There is a keystore already",
        "Nothing is overwritten: give another path, or move the file away.",
        money="",
    ),
    "keystore_invalid": Problem(
        400,
        5,
        "The keystore cannot be opened",
        "Check the passphrase, the file's mode (0600) and that it is whole.",
        money="",
    ),
    "keystore_locked": Problem(
        503, 5, "The keystore is locked", "Give the passphrase; see config keystore.*.", money=""
    ),
    "last_pinned_address": Problem(
        409,
        2,
        "It is the only address that the merchant may be paid at",
        "Without one the next payment would make its own address known, whoever it pays. Let the new address be "
        "paid first (payagent merchants pin NAME ADDRESS), then forget this one. To pay nothing there any more, "
        "take the merchant out: payagent merchants remove NAME, or in the config file.",
        money="",
    ),
    "lease_lost": Problem(
        503,
        1,
        "Another daemon has opened this ledger",
        "Find the other daemon: one machine alone may have the data folder. This one has stopped.",
        money="What was durable before stands; nothing was signed since.",
    ),
    "ledger_behind": Problem(
        503,
        4,
        "The ledger does not know all that was signed",
        "Wait: payagent reads the wallet's transactions from the chain when what was signed has landed or run "
        "out, and goes on by itself. If you have the newer ledger.db, stop payagent and put that one back.",
        retryable=True,
    ),
    "ledger_tampered": Problem(
        503,
        2,
        "The ledger is not as payagent left it",
        "Keep the file as it is: `payagent doctor` names what is wrong. Find out what or who changed it, "
        "then put a backup back in another folder with `payagent restore FILE` (docs/operators.md, Backups, says "
        "what that forgets).",
        money="What it says of payments cannot be relied on. What was sent before may land all the same.",
    ),
    "ledger_missing": Problem(
        503,
        2,
        "The wallet's ledger is not there",
        "Put ledger.db back, its newest state, with ledger.db-wal if there is one. If it is lost, put a backup "
        "back in another folder with `payagent restore FILE`. If there is none: wait an hour, so that what was "
        "signed has landed or run out, find out which purchases are paid, and begin anew in another folder with "
        "`payagent init --restore FILE`.",
        money="It knows what was paid and what is in flight: without it payagent could pay twice, so it does not "
        "start.",
    ),
    "ledger_newer": Problem(
        503,
        2,
        "A newer payagent has changed the ledger",
        "Start that one, or one newer still. docs/operators.md (A newer payagent) says what going back takes.",
        money="The ledger is as it was, and what is under way goes on when the right payagent runs.",
    ),
    "limit_exceeded": Problem(
        403,
        6,
        "Above a limit",
        "Raise the named limit; max_total is the caller's own (--max). One over a time also frees up by itself.",
    ),
    "media_type_refused": Problem(
        415, 2, "The body is not declared as JSON", "Send it with Content-Type: application/json.", money=""
    ),
    "merchant_in_private_network": Problem(
        502,
        6,
        "The merchant's name leads into a private network",
        "Ask who answers for that name: a public merchant is not there. Where it is meant to be, set "
        "merchants.NAME.private_network = true and start payagent again.",
        money="No money was moved by this.",
    ),
    "merchant_in_flight_limit": Problem(
        503,
        8,
        "As many payments to this merchant are on their way as may be",
        "Wait until some of them are in a block; merchants.NAME.in_flight_max is the bound.",
        retryable=True,
    ),
    "merchant_exists": Problem(
        409,
        2,
        "There is a merchant of that name or origin",
        "Look at `payagent merchants list`; one of the config file is changed there, and read again by SIGHUP.",
        money="",
    ),
    "merchant_not_allowed": Problem(
        403,
        6,
        "This merchant may not be paid",
        "Add its origin to [merchants]; an app that is bound to some merchants pays no other.",
    ),
    "merchant_refused": Problem(
        409,
        3,
        "The merchant refused the transaction before it broadcast it",
        "Nothing is to be done: payagent takes the coins back, and the payment ends as void.",
        money="Its money is held until the transaction that takes the coins back is deep enough in the chain.",
    ),
    "merchant_sells_none": Problem(
        409,
        3,
        "The merchant sells no prepaid balance for this request",
        "Where calls are left, use them first. Else name a call that it sells in batches, or its own request for "
        "top-ups in merchants.NAME.topup.",
        money="What the top-up paid before stands; nothing more is paid for it.",
    ),
    "merchant_stopped": Problem(
        403,
        6,
        "Nothing is bought from this merchant: it took money and did not serve",
        "Find out from the merchant what became of the payments that it did not serve, then let it be paid again: "
        "payagent merchants reopen NAME. Proofs of what is paid may be shown all the same.",
    ),
    "merchant_timeout": Problem(
        504,
        4,
        "The merchant did not answer in time",
        "Try again later; proxy.read_timeout_s says how long the proxy waits.",
        money="No money was moved by this.",
        retryable=True,
    ),
    "merchant_unreachable": Problem(
        502,
        4,
        "The merchant cannot be reached",
        "Try again later.",
        money="No money was moved by this.",
        retryable=True,
    ),
    "method_not_allowed": Problem(405, 2, "The path does not take this method", "See /openapi.json.", money=""),
    "mixed_dialects": Problem(422, 3, "The 402 mixes two dialects", _SENDER),
    "mnemonic_invalid": Problem(
        400, 2, "The recovery words are not valid", "24 English BIP-39 words, checksum right.", money=""
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
    "not_found": Problem(404, 2, "No such thing", "Check the id or the name: lists show what there is.", money=""),
    "not_served_yet": Problem(
        504,
        8,
        "Paid or about to be, and the merchant has not served the call yet",
        "Repeat the same call: it presents the same proof, and nothing is paid again.",
        money="The payment lives on: it is held until it is in a block, and spent then.",
        retryable=True,
    ),
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
    "answer_not_written": Problem(
        500,
        2,
        "The answer could not be written",
        "Make room, and look at `payagent payments list` before you order anything again.",
        money="What was ordered is done all the same.",
    ),
    "output_not_written": Problem(
        500,
        2,
        "The merchant's answer could not be written",
        "Make room or name another file, and run the same command again: it shows the same proof.",
        money="What was paid stays paid, and nothing is paid again for the same call.",
        retryable=True,
    ),
    "outputs_too_many": Problem(422, 3, "Too many outputs", "16 outputs are the bound. " + _SENDER),
    "passphrase_too_short": Problem(
        400, 2, "The passphrase is too short", "Choose a longer one; nothing was made.", money=""
    ),
    "paused": Problem(
        503,
        4,
        "An operator has paused the wallet",
        "Ask the operator; `payagent resume` signs again. Nothing else does, and no restart.",
        money="Nothing was signed. What was held before the pause stays held; for a call that is new nothing is.",
        retryable=True,
    ),
    "proof_too_big": Problem(
        409,
        7,
        "The transaction takes too many coins to travel in a header",
        "Run `payagent wallet send` to your own address with part of the wallet: it makes few large coins of "
        "many.",
    ),
    "paid_not_served": Problem(
        502,
        8,
        "Paid, and the merchant answers 402 instead of serving",
        "Repeat the same call: it presents the same proof, and nothing is paid again. If the answer stays the "
        "same, give the merchant the transaction's hash. Pay nothing that `merchant_answer` asks for.",
        money="The payment lives on: it is held until it is in a block, and spent then.",
        retryable=True,
    ),
    "payment_ended": Problem(
        502,
        3,
        "The payment ended without paying",
        "Repeat the call: it opens a new payment.",
        money="Nothing was paid, and nothing is held for it any more.",
        retryable=True,
    ),
    "provider_untrusted": Problem(
        503,
        4,
        "The provider's answers contradict what must hold",
        "Check chain.providers; `payagent doctor`.",
        money="",
    ),
    "rate_limited": Problem(
        429,
        4,
        "Too many requests at once",
        "Try again after Retry-After. The operator may allow more: api.calls_per_s and api.calls_at_once.",
        money="",
        retryable=True,
    ),
    "parent_lost": Problem(
        409,
        3,
        "The payment whose change it was to spend went by another transaction",
        "Nothing is to be done: its transaction can never come into a block, and the same call can be paid anew.",
        money="Its money is free again.",
    ),
    "price_changed": Problem(
        403,
        6,
        "The call costs more than what was agreed to for it, or is priced in another asset",
        "If the price is right, let the payment go on (payagent payments approve ID); from then on prices are "
        "measured by this one. merchants.NAME.drift_percent says how much more is let through.",
        money=STILL_ASKED,
    ),
    "receipt_invalid": Problem(
        422,
        2,
        "The file is no receipt",
        "Take it anew with `payagent payments show ID --receipt`, and check the file as it came.",
        money="",
    ),
    "request_too_big_to_replay": Problem(
        413,
        2,
        "The call costs money, and its body is too big to be sent again with the proof",
        "Raise proxy.spool_bytes, or make room where temporary files lie.",
    ),
    "resource_mismatch": Problem(
        422,
        3,
        "The 402 sells something else than what was called",
        "Call the resource that it names. If it is the same, the merchant should name it by the URL of the call; "
        "that it names another host or port can be set (known_as).",
    ),
    "resolved": Problem(
        409,
        3,
        "An operator took the payment's coins back",
        "Ask the operator why. The same call can be paid anew once the payment is void.",
        money="Its money is held until the transaction that takes the coins back is deep enough in the chain; "
        "of what nothing was signed for, it is free.",
    ),
    "restored_recently": Problem(
        503,
        4,
        "The ledger was put back from a backup a short while ago",
        "Wait until the time that is named, and find out meanwhile what was bought since the backup.",
        retryable=True,
    ),
    "scheme_not_supported": Problem(
        422, 3, "Not a way of paying that payagent knows", "Ask the merchant for x402's scheme `exact`."
    ),
    "transfer_invalid": Problem(
        400,
        2,
        "The transfer cannot be made as it was ordered",
        "Correct the order: an address of this network, an amount that an output can hold, not more coins than "
        "one transaction makes. See `payagent wallet send --help` and `payagent wallet split --help`.",
    ),
    "signer_lost": Problem(
        503,
        4,
        "The process that holds the key has ended",
        "The daemon ends too: start it again, and look in the system's log for what killed the other.",
        money="Nothing was signed since. What was admitted keeps its money held, and is signed at the next start.",
        retryable=True,
    ),
    "signer_refused": Problem(
        500,
        1,
        "The signer does not sign such a transaction",
        "This is a bug, or the daemon is not itself: stop it, and report what the detail says.",
        money="Nothing new was signed. Where nothing ever was, the payment is rejected, its money free; else it "
        "stays held, since what was signed before may still land.",
    ),
    "split_ambiguous": Problem(
        422,
        3,
        "The revenue share is not understood in full",
        "Set split_mode for the merchant, or tell it. " + _SENDER,
    ),
    "store_failed": Problem(
        503,
        1,
        "The ledger cannot be read or written",
        "Make room on the disk or mend it: nothing is signed meanwhile. If that is not enough, restart.",
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
    "terms_not_understood": Problem(
        422,
        3,
        "The 402 names money or terms that payagent does not know",
        "The detail names the member. " + _SENDER,
    ),
    "topup_cancelled": Problem(
        409,
        3,
        "The top-up was cancelled",
        "Order anew what is missing, if it is still wanted.",
        money="What its payments bought stands; nothing more is paid for it.",
    ),
    "topup_not_configured": Problem(
        400,
        2,
        "It is not known by which request the merchant sells prepaid balance",
        "Set path in merchants.NAME.topup, or name an ordinary call that costs money: --path and --data.",
    ),
    "topup_other_asset": Problem(
        409,
        6,
        "The merchant sells something else than the top-up is in",
        "Order it in what the merchant sells: the asset that it asks for, or calls; --dry-run shows the price.",
        money="What the top-up paid before stands; nothing more is paid for it.",
    ),
    "topup_out_of_time": Problem(
        504,
        3,
        "The top-up was not done within 24 hours",
        "Look at what stood against it, and order anew what is missing.",
        money="What its payments bought stands; nothing more is paid for it.",
    ),
    "topup_refused": Problem(
        409,
        3,
        "The merchant does not take the top-up's request",
        "Correct the request: merchants.NAME.topup, or --path, --method and --data.",
        money="What the top-up paid before stands; nothing more is paid for it.",
    ),
    "topup_too_small": Problem(
        409,
        6,
        "One payment of the top-up costs more than all that is ordered",
        "Order at least that much, if the price is right; --dry-run shows it.",
        money="What the top-up paid before stands; nothing more is paid for it.",
    ),
    "topup_in_progress": Problem(
        409,
        8,
        "Another top-up of the same prepaid balance is under way",
        "Wait until it is done; `payagent prepaid topups` shows it.",
        retryable=True,
    ),
    "transaction_too_big": Problem(409, 7, "The transaction would be too big", "Consolidate the wallet first."),
    "transfer_method_refused": Problem(
        422,
        3,
        "The money is to be locked in a contract",
        "Only plain payments to an address are made: ask the merchant for the transfer method `default`.",
    ),
    "unauthorized": Problem(401, 5, "No valid token", "Send `Authorization: Bearer <app token>`.", money=""),
    "amount_invalid": Problem(
        400, 2, "Not an amount", 'Write it as "5 ADA", "0.25 ADA" or "250000 lovelace".', money=""
    ),
    "websocket_not_supported": Problem(
        501, 2, "The proxy passes no WebSocket", "Call the merchant itself for a WebSocket.", money=""
    ),
    "wallet_address_required": Problem(
        422,
        3,
        "The merchant wants X-Wallet-Address",
        "Repeat the call with X-Wallet-Address; see `payagent wallet address`.",
    ),
    "recovery_words_on_disk": Problem(
        400,
        5,
        "The recovery words lie beside the keystore",
        "Keep the words off this machine, then delete the file.",
        money="",
    ),
}
