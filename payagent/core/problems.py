"""The table of all refusals: stable code, what it means for the money, what to do next.

The API renders a row as RFC 9457 problem+json. The CLI prints it as text and exits with the row's exit code.
docs/reference/problems.md is generated from it.

Never: raises for control flow inside core. A `Refused` always reaches the person or program that asked.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

_NOTHING = "Nothing was signed and no money is held for it."


@dataclass(frozen=True, slots=True)
class ProblemReason:
    """One of several causes behind a code. None: as in the code's row."""

    title: str
    fix: str | None = None
    money: str | None = None
    retryable: bool | None = None
    agent: str | None = None
    argument: str | None = None


@dataclass(frozen=True, slots=True)
class Problem:
    """One row: HTTP `status`, CLI `exit_code`, the texts, and the `reasons` of a code that has several.

    `money` is empty if no payment was decided on: others may be in flight with their money held. `agent` is the
    fix for an AI agent, which cannot do what only a person may; empty if no agent meets the problem. `argument`
    follows it in the tools of `payagent mcp`: what their own arguments can do.
    """

    status: int
    exit_code: int
    title: str
    fix: str
    money: str = _NOTHING
    retryable: bool = False
    agent: str = ""
    argument: str = ""
    reasons: Mapping[str, ProblemReason] = field(default_factory=dict)

    def of(self, reason: str | None) -> "Problem":
        """The row with the texts of its reason. KeyError if it has no such reason, or if one has to be given."""
        if reason is None and not self.reasons:
            return self
        texts = self.reasons[reason or ""]
        overrides = {name: text for name in ProblemReason.__slots__ if (text := getattr(texts, name)) is not None}
        return replace(self, **overrides)


def name_of(code: str | None, reason: str | None) -> str | None:
    """The name that `Refused` takes: `payment_void/expired`, or the code alone if it has no reasons."""
    return f"{code}/{reason}" if reason else code


class Refused(Exception):  # noqa: N818  the design's word for it
    """payagent refuses a request. `name`: see `name_of`. `context` is shown, so it holds no secrets.

    `fix`: what to do in the case at hand, such as a command with its arguments, in place of the table's text.
    """

    def __init__(
        self, name: str, detail: str, *, fix: object = None, money: object = None, **context: object
    ) -> None:
        super().__init__(f"{name}: {detail}")
        self.name = name
        self.code, _, reason = name.partition("/")
        self.reason = reason or None
        if self.code not in PROBLEMS:
            raise KeyError(f"problem code {self.code!r} has no row in PROBLEMS")
        row = PROBLEMS[self.code].of(self.reason)
        self.problem = row if fix is None else replace(row, fix=str(fix))
        self.detail = detail
        self.context = context
        self.money = self.problem.money if money is None else str(money)

    def with_money(self, money: str) -> "Refused":
        """Return a copy with another money text. All callers of one commit may share the original object."""
        return Refused(self.name, self.detail, fix=self.problem.fix, money=money, **self.context)

    @property
    def record(self) -> dict[str, object]:
        """The parts that the ledger and the API record."""
        return {"code": self.code, "reason": self.reason, "detail": self.detail}

    @property
    def limit_record(self) -> dict[str, object]:
        """The limit that refuses, for the ledger: `limit`, `asset` and `scope`, such as `app a, merchant https://b`."""
        if "limit" not in self.context:
            return {}
        owners = ", ".join(f"{name} {self.context[name]}" for name in ("app", "merchant") if name in self.context)
        return {"limit": self.context["limit"], "asset": self.context.get("asset"), "scope": owners or "wallet"}

    @property
    def message(self) -> str:
        """One text for people: what happened, what it means for the money, what to do next."""
        summary = f"{self.problem.title}: {self.detail.rstrip('.')}."
        return " ".join(part for part in (summary, self.money, self.problem.fix) if part)


def agent_fix(code: str, reason: str | None, fix: str, *, is_proxied: bool = False) -> str:
    """What an AI agent can do about a problem; `fix` if the table does not say, as for a newer daemon's code.

    `is_proxied`: the agent called a tool of another server, which lacks the arguments of payagent's own.
    """
    try:
        row = PROBLEMS[code].of(reason)
    except KeyError:
        return fix
    return (row.agent if is_proxied else f"{row.agent} {row.argument}".strip()) or fix


@contextmanager
def own_order(**context: object) -> Iterator[None]:
    """Turn refusals of a merchant's invoice into `transfer_invalid`: inside, the operator made the order."""
    try:
        yield
    except Refused as refused:
        if refused.problem.exit_code != EXIT_INVOICE and refused.name != "utxos_too_small/transaction_size":
            raise
        raise Refused("transfer_invalid", refused.detail, **refused.context, **context) from None


EXIT_INVOICE = 3
"""The exit code of all problems with a merchant's 402."""
STILL_ASKED = "Nothing was signed. It counts against the limits while it waits for approval."
_HELD_UNTIL_CANCELLED = "Its money stays held until the transaction that cancels it is deep enough in the chain."
_TELL_MERCHANT = "Tell the merchant that its 402 cannot be paid safely."
_MERGE_UTXOS = "Send part of the wallet to its own address with `payagent wallet send`. That merges small UTxOs."
_PROOF_AGAIN = "Repeat the same call. It presents the same proof and pays nothing again."
_MERCHANTS_FAULT = "Only the merchant can correct its 402. Tell a person, or buy elsewhere."
_AGAIN = "Repeat the same call: it pays nothing more."
_AGAIN_LATER = "Repeat the same call later."
_WHY = "`reason` tells them why you buy."
_TELL_PERSON = (
    "Only a person can correct this. Tell them what the detail says, and repeat the same call after that."
)
_PAID = "The payment stands. Its money is held until it is in a block, then spent."

PROBLEMS: dict[str, Problem] = {
    "address_invalid": Problem(
        422,
        3,
        "The address cannot be paid",
        "payagent pays key addresses (CIP-19 types 0 and 6) on its own network. " + _TELL_MERCHANT,
        agent=_MERCHANTS_FAULT,
        reasons={
            "bad_checksum": ProblemReason("The address has a wrong checksum"),
            "byron": ProblemReason("Byron addresses are not paid"),
            "mixed_case": ProblemReason("The address is not in lower case"),
            "not_text": ProblemReason("The address is not a text of visible ASCII"),
            "own": ProblemReason("The invoice pays this wallet itself", _TELL_MERCHANT),
            "pointer": ProblemReason("Pointer addresses are not paid"),
            "script": ProblemReason("Script addresses are not paid"),
            "stake": ProblemReason("A stake address cannot be paid"),
            "unknown_type": ProblemReason("CIP-19 does not define the address type"),
            "wrong_length": ProblemReason("The address has the wrong length for its type"),
            "wrong_network": ProblemReason("The address is on another network"),
            "wrong_prefix": ProblemReason("The address has the wrong prefix"),
        },
    ),
    "address_not_pinned": Problem(
        403,
        6,
        "The merchant has not been paid at this address before",
        "Ask the merchant, not through its 402, whether the address is its own. If so, run `payagent payments "
        "approve ID`. That also pins the address.",
        money=STILL_ASKED,
        agent="Only a person can approve the new address. Repeat the same call after that.",
    ),
    "already_decided": Problem(
        409,
        2,
        "The payment does not wait for approval",
        "See `payagent payments show ID`. A decision cannot be changed.",
        money="The earlier decision stands.",
    ),
    "already_exists": Problem(
        409,
        2,
        "It exists already",
        "Give another path, or move the existing file away. Nothing is overwritten.",
        money="",
        reasons={
            "file": ProblemReason("The file exists already"),
            "keystore": ProblemReason("A keystore exists already"),
            "ledger": ProblemReason("The database has a ledger already", "Name an empty database."),
            "app": ProblemReason(
                "An app with this name exists already",
                "Choose another name, or give that app a new token: payagent app rotate-token NAME.",
            ),
            "merchant": ProblemReason(
                "A merchant with this name or origin exists already",
                "See `payagent merchants list`. Edit a merchant of the config file there, then send SIGHUP.",
            ),
        },
    ),
    "already_running": Problem(
        409,
        2,
        "Another daemon uses this wallet",
        "Stop it first. Two daemons on one ledger or keystore cannot see each other's payments.",
        money="",
    ),
    "amount_invalid": Problem(
        400,
        2,
        "The amount is not valid",
        'Write it as "5 ADA", "0.25 ADA" or "250000 lovelace", or as "5 USDM" with a name from [[limits.assets]].',
        money="",
        agent="Correct the amount.",
        argument='Write `max_cost` as "5 ADA", "0.25 ADA" or "250000 lovelace", or "5 USDM" with a token\'s name.',
    ),
    "approval_denied": Problem(
        403,
        3,
        "The payment was not approved",
        "Ask the operator before you repeat the call.",
        agent="Do not repeat the call, and do not buy this in another way. Ask the person.",
        reasons={
            "person": ProblemReason(
                "The payment was denied",
                "Ask the operator before you repeat the call. For a while the same call is refused at once.",
            ),
            "timeout": ProblemReason(
                "The approval timed out",
                "Repeat the call when the operator can decide. It asks for a new approval.",
                retryable=True,
                agent="Repeat the same call when a person can decide.",
                argument=_WHY,
            ),
        },
    ),
    "approval_required": Problem(
        403,
        8,
        "The payment is above the approval threshold",
        "Wait for the decision. To decide: payagent payments approve ID, or deny ID.",
        money=STILL_ASKED,
        retryable=True,
        agent="Only a person may decide. Repeat the same call after that.",
        argument=_WHY,
    ),
    "approved_amount_exceeded": Problem(
        409,
        7,
        "The transaction would cost more than was approved",
        f"{_MERGE_UTXOS} Then approve again.",
        money="Nothing was signed. The payment still waits for approval.",
    ),
    "asset_not_allowed": Problem(
        403,
        6,
        "This asset may not be spent",
        "Give it a table in [[limits.assets]] of the config and restart the daemon. If the app is bound to other "
        "assets, use another app.",
        agent="Only a person can allow this asset. You can buy where another one is taken.",
    ),
    "awaiting_approval": Problem(
        503,
        8,
        "The payment waits for approval",
        "Repeat the same call later. It finds this payment. To decide: payagent payments approve ID, or deny ID.",
        money=STILL_ASKED,
        retryable=True,
        agent="Only a person may decide. Repeat the same call after that: it pays nothing more.",
    ),
    "bad_request": Problem(
        400,
        2,
        "The request is not valid",
        "Correct the request. /openapi.json describes it.",
        money="",
        agent="Correct the argument that the detail names.",
    ),
    "batch_in_progress": Problem(
        409,
        8,
        "Another payment for the same prepaid balance is in progress",
        "Repeat the call to the merchant without a proof. It is served from the batch once that is paid.",
        retryable=True,
        agent="Repeat the same call. It is served from the batch once that is paid.",
    ),
    "body_too_big": Problem(
        413,
        2,
        "The body is too big",
        "Send the 402 as received, at most 64 KiB.",
        money="",
        agent=_MERCHANTS_FAULT,
    ),
    "body_too_slow": Problem(
        408,
        2,
        "The body did not arrive in time",
        "Send it again, without pauses.",
        money="",
        retryable=True,
        agent=_AGAIN_LATER,
    ),
    "browser_refused": Problem(
        403,
        5,
        "A browser may not make this request",
        "Call the API from a program.",
        money="",
        agent=_TELL_PERSON,
        reasons={
            "web_page": ProblemReason(
                "A web page may not use this API",
                "Call it from a program, without Origin and Sec-Fetch-Site headers.",
            ),
            "host": ProblemReason(
                "The Host header does not name this machine",
                "Call it as localhost, 127.0.0.1 or [::1], or by a name that is in api.allowed_hosts.",
            ),
        },
    ),
    "cancel_too_recent": Problem(
        503,
        8,
        "The earlier payment for this purchase was just cancelled",
        "Try again in a minute. A new payment must spend the UTxOs that the cancel returned, and they are in use.",
        money="The cancelled payment's money is free again. Nothing new was signed.",
        retryable=True,
        agent="Repeat the same call in a minute.",
    ),
    "chain_not_ready": Problem(
        503,
        4,
        "payagent does not see enough of the chain to pay",
        "Wait. This mostly passes by itself. `payagent doctor` checks each provider.",
        retryable=True,
        agent="Repeat the same call in a few minutes. If that does not help, tell a person.",
    ),
    "channel_busy": Problem(
        503,
        8,
        "The channel waits for the answer to an earlier call",
        "A channel pays one call at a time. Report each answer to /v1/payments/ID/delivery, then try again.",
        retryable=True,
        agent=_AGAIN_LATER,
    ),
    "channel_disputed": Problem(
        409,
        3,
        "The merchant counts more than payagent has signed",
        "payagent closes the channel. See payagent channels show ID, and ask the merchant.",
        money="The merchant can take no more than the vouchers that payagent signed.",
        agent="Only a person can settle this with the merchant. Tell them, or buy elsewhere.",
    ),
    "channel_full": Problem(
        403,
        6,
        "The channel has no room for calls of that price",
        "Lock more in it: payagent channels add ID --amount. Or close it, and open another.",
        agent="Only a person can lock more. Tell them which merchant it is.",
    ),
    "channel_missing": Problem(
        403,
        6,
        "The merchant sells by channel alone, and none is open",
        "Open one: payagent channels open MERCHANT. See docs/how-to/pay-small-amounts.md first.",
        agent="Only a person can open a channel. Tell them which merchant it is, or buy elsewhere.",
    ),
    "channel_opening": Problem(
        503,
        8,
        "The channel cannot pay calls yet",
        "Wait until payagent channels list says open, then send the request again.",
        money="Nothing was signed for this call.",
        retryable=True,
        agent=_AGAIN_LATER,
    ),
    "channel_unoffered": Problem(
        409,
        6,
        "No offer of this merchant for a channel is known",
        "Make a call to it first, so that it answers 402. Its table needs channel.provider_keys.",
    ),
    "channel_unserved": Problem(
        502,
        8,
        "The merchant has not served a call that a channel pays",
        "Send the request again. If other calls came between, it is a new call: if it has a key, use a new one.",
        money="At most the call's price is spent.",
        retryable=True,
        agent="If you still need the answer, repeat the call. It is paid again if other calls came between.",
    ),
    "clock_skew": Problem(
        503,
        4,
        "The local clock and the chain differ by more than 120 s",
        "Set the machine's clock. Nothing is signed until the two agree.",
        retryable=True,
        agent=_TELL_PERSON,
    ),
    "config_invalid": Problem(
        400,
        2,
        "The configuration is not valid",
        "Correct the named key in the named file.",
        money="",
        agent=_TELL_PERSON,
    ),
    "daemon_not_running": Problem(
        503,
        4,
        "payagent is not running",
        "Start it: `systemctl start payagent` as a service, else `payagent serve` in another terminal. If it "
        "runs, it listens on another socket: without api.socket in the config, $XDG_RUNTIME_DIR decides which.",
        money="The request did not reach it. Earlier payments are safe and go on when it starts.",
        retryable=True,
        agent="Only a person can start payagent. Tell them, and repeat the same call after that.",
    ),
    "daemon_timeout": Problem(
        504,
        4,
        "payagent did not answer properly",
        "Repeat the same call: it finds its payment. See `payagent payments list`.",
        money="It may have accepted the request. What it accepted goes on.",
        retryable=True,
        agent="Repeat the same call: it never pays twice.",
    ),
    "decimals_mismatch": Problem(
        422,
        3,
        "The invoice and the config disagree on the asset's decimals",
        "Check the asset's decimals in the config. " + _TELL_MERCHANT,
        agent=_TELL_PERSON,
    ),
    "deposit_rolled_back": Problem(
        409,
        8,
        "A rollback removed the deposit that the payment spends",
        "Nothing to do. The payment goes on if the deposit returns. Otherwise it ends as void, once no rollback "
        "can reach the last time limit of its transactions.",
        money="Its money stays held until then, because the signed transaction lands if the deposit returns.",
        agent="Wait. The payment goes on or ends by itself. Repeat the same call later.",
    ),
    "external_spend": Problem(
        503,
        4,
        "The wallet's UTxOs were spent outside payagent",
        "Look the transaction up in an explorer. Stop whatever else uses the wallet's recovery words. If the data "
        "folder was rolled back, see docs/how-to/restore-and-recover.md. Then run `payagent wallet unfreeze`. "
        "If the words are stolen, send everything to a new wallet at once.",
        agent="Only a person can look into this. Tell them at once, and buy nothing until they have.",
    ),
    "external_spend_new": Problem(
        409,
        2,
        "Another transaction has spent the wallet's UTxOs since",
        "Review that one too: `payagent wallet unfreeze` shows all of them. Then repeat the command.",
        money="Nothing has changed. The wallet stays frozen and nothing is signed.",
    ),
    "fee_too_high": Problem(
        500,
        1,
        "The fee would exceed its cap",
        "Check `payagent doctor`: a provider may report false parameters. Otherwise report this as a bug.",
        agent=_TELL_PERSON,
    ),
    "file_invalid": Problem(
        422,
        2,
        "The file is not valid",
        "Create the file again.",
        money="",
        reasons={
            "backup": ProblemReason(
                "The backup is not valid, or would not be",
                "Take another backup. For a ledger in use, `payagent ledger verify` names what is wrong.",
            ),
            "receipt": ProblemReason(
                "The file is not a receipt",
                "Save it again with `payagent payments show ID --receipt`, and check the unchanged file.",
            ),
        },
    ),
    "forbidden": Problem(
        403,
        5,
        "The token may not do this",
        "Use a token with the needed scope. If the app was revoked, payagent app rotate-token NAME lets it in "
        "again.",
        money="",
        agent="Only a person can give you more rights. Tell them what the detail says.",
    ),
    "funds_pending": Problem(
        503,
        7,
        "Not enough spendable funds until pending change confirms",
        "Try again when the payments in flight are in a block, usually within a minute. `payagent wallet split` "
        "makes more UTxOs, so that payments can run in parallel.",
        retryable=True,
        agent="Repeat the same call in a minute.",
    ),
    "idempotency_key_invalid": Problem(
        400, 2, "The idempotency key is not valid", "Send 1 to 255 visible ASCII characters.", money=""
    ),
    "idempotency_key_reused": Problem(
        422,
        6,
        "The idempotency key belongs to another request",
        "Use a new key for a new purchase.",
        money="The first request's payment is unchanged. Nothing new was signed.",
    ),
    "internal_error": Problem(
        500,
        1,
        "A bug in payagent",
        "Repeat the same request. If it already made a payment, it finds that one.",
        money="Committed payments are safe. See `payagent payments list`.",
        retryable=True,
        agent="Repeat the same call: it never pays twice. If that does not help, tell a person.",
    ),
    "invoice_already_paid": Problem(
        409,
        6,
        "The invoice already has a payment",
        "See `payagent payments show ID`.",
        money="That payment stands. Nothing new was signed.",
        agent="Repeat the same call. It finds the payment and pays nothing more.",
        reasons={
            "same_intent": ProblemReason(
                "The invoice already has a payment for this purchase",
                "Pay it again in the same way. That finds its payment with the headers of the retry, and costs "
                "nothing.",
            ),
            "other_intent": ProblemReason(
                "The invoice already has a payment for another purchase",
                "See `payagent payments show ID`, or ask the merchant for a new invoice.",
                agent="Repeat the same call later, so that the merchant makes a new invoice.",
            ),
        },
    ),
    "invoice_expired": Problem(
        422,
        3,
        "The invoice has expired, or is about to",
        "Ask the merchant for a new invoice.",
        agent="Repeat the same call. The merchant then makes a new invoice.",
    ),
    "invoice_invalid": Problem(
        422,
        3,
        "The 402 is not an invoice that payagent understands",
        _TELL_MERCHANT,
        agent=_MERCHANTS_FAULT,
        reasons={
            "amount": ProblemReason("The amount is not a whole number of units"),
            "amount_range": ProblemReason("The amount is outside the chain's range"),
            "asset": ProblemReason("The asset is not given as policy and name"),
            "body": ProblemReason("The 402's body is not an invoice"),
            "chain": ProblemReason("The invoice names an unknown chain"),
            "json": ProblemReason("The body is not strict JSON"),
            "contradiction": ProblemReason("The 402 contradicts itself"),
            "id": ProblemReason("The invoice id has unsafe characters or length"),
            "missing_field": ProblemReason("The invoice lacks a required field"),
            "mixed_dialects": ProblemReason("The 402 mixes two dialects"),
            "too_many_outputs": ProblemReason(
                "The invoice has too many outputs", "At most 16 are paid. " + _TELL_MERCHANT
            ),
            "too_big": ProblemReason(
                "The 402 is too long to repeat in a proof", "At most 8 KiB are accepted. " + _TELL_MERCHANT
            ),
            "below_min_ada": ProblemReason(
                "An output holds less ADA than the chain accepts",
                "The merchant must ask for more in that output. " + _TELL_MERCHANT,
            ),
        },
    ),
    "invoice_unsupported": Problem(
        422,
        3,
        "The merchant asks for a way to pay that payagent lacks",
        "Ask the merchant for another way to pay.",
        agent="payagent cannot pay in this way. Tell a person, or buy elsewhere.",
        reasons={
            "extension": ProblemReason(
                "The 402 requires an extension that payagent lacks",
                "Ask the merchant for a way to pay without it.",
            ),
            "scheme": ProblemReason(
                "The payment scheme is not supported",
                "Ask the merchant for x402's scheme `exact`. If it sells by channel (`batch-settlement`), see "
                "docs/how-to/pay-small-amounts.md.",
            ),
            "transfer_method": ProblemReason(
                "The 402 asks to lock the money in a contract",
                "Ask the merchant for the transfer method `default`: a plain payment to an address.",
            ),
        },
    ),
    "keystore_invalid": Problem(
        400,
        5,
        "The keystore cannot be opened",
        "Check the passphrase, the file's mode (0600) and that the file is complete. If the keys are in an HSM, "
        "correct its PIN or keys before the next start, which tries the PIN once.",
        money="",
    ),
    "keystore_locked": Problem(
        503,
        5,
        "The keystore is locked",
        "Start the daemon on a terminal, or set `passphrase_file` in `[keystore]`; for an HSM, `pin_file`.",
        money="",
        agent=_TELL_PERSON,
    ),
    "last_pinned_address": Problem(
        409,
        2,
        "It is the merchant's only pinned address",
        "Without one, the next payment would pin any address. Pin the new address first: payagent merchants pin "
        "NAME ADDRESS. To stop paying the merchant, run `payagent merchants remove NAME` or edit the config.",
        money="",
    ),
    "lease_lost": Problem(
        503,
        1,
        "Another daemon has taken over",
        "In a fleet, ask again with the same key: another daemon holds the account now. A daemon alone has "
        "stopped: find the other one, because only one machine may use the data folder.",
        money="Committed payments are safe. Nothing was signed since.",
        agent="Repeat the same call. If that does not help, tell a person.",
    ),
    "ledger_behind": Problem(
        503,
        4,
        "The ledger is older than the last signature",
        "Wait. payagent reads the wallet's transactions from the chain and then goes on. If you have the newer "
        "ledger.db, stop payagent and put that file back.",
        retryable=True,
        agent="Repeat the same call in a few minutes. If that does not help, tell a person.",
    ),
    "ledger_missing": Problem(
        503,
        2,
        "The wallet's ledger is missing",
        "Put back the newest ledger.db, with its ledger.db-wal if there is one. If it is lost, restore a backup "
        "into another folder: `payagent restore FILE`. Without a backup, wait an hour, so that signed "
        "transactions land or expire. Find out which purchases are paid. Then start over in another folder: "
        "`payagent init --restore FILE`.",
        money="Without the ledger payagent could pay twice, so it does not start.",
    ),
    "ledger_newer": Problem(
        503,
        2,
        "The ledger was written by a newer payagent",
        "Start that version or a newer one. docs/how-to/upgrade.md says how to go back.",
        money="The ledger is unchanged. Open payments go on when the right version runs.",
    ),
    "ledger_older": Problem(
        503,
        2,
        "The ledger is from before 0.1.0",
        "Finish its open payments with the payagent that wrote it, and keep the ledger for your records. Then run "
        "`payagent init --restore WORDS_FILE` with an empty data folder or database.",
        money="The ledger is unchanged, and the wallet's funds stay on the chain.",
    ),
    "ledger_tampered": Problem(
        503,
        2,
        "The ledger was changed from outside",
        "Keep the file unchanged. `payagent doctor` names what is wrong. Find out who changed it. Then restore a "
        "backup into another folder with `payagent restore FILE`. docs/how-to/restore-and-recover.md says what is "
        "lost.",
        money="What it says of payments may be false. Transactions sent before may still land.",
    ),
    "limit_exceeded": Problem(
        403,
        6,
        "Above a limit",
        "Raise this limit with `payagent limits set`, or wait until room frees up.",
        agent="Only a person can raise a limit. Wait until room frees up, or buy something cheaper. Do not split "
        "a purchase to stay below a limit.",
        argument="If your `max_cost` was too low, repeat the call with more.",
    ),
    "limit_not_lower": Problem(
        409,
        2,
        "This could let more out",
        "Leave out `only_lower` to set the limit all the same.",
        money="Nothing has changed.",
    ),
    "media_type_refused": Problem(
        415, 2, "The body is not declared as JSON", "Send it with Content-Type: application/json.", money=""
    ),
    "merchant_in_flight_limit": Problem(
        503,
        8,
        "Too many payments to this merchant are in flight",
        "Wait until some of them are in a block, or raise merchants.NAME.payments_in_flight_max.",
        retryable=True,
        agent="Repeat the same call in a minute, when earlier payments to this merchant are in a block.",
    ),
    "merchant_in_private_network": Problem(
        502,
        6,
        "The merchant's name resolves to a private network",
        "Check the DNS name: a public merchant is not in a private network. If it is meant to be, set "
        "merchants.NAME.allow_private_network = true and restart payagent.",
        money="No money moved.",
        agent=_TELL_PERSON,
    ),
    "merchant_not_allowed": Problem(
        403,
        6,
        "This merchant may not be paid",
        "Allow it: payagent merchants add NAME --origin ORIGIN.",
        agent="Only a person can allow a merchant. Tell them its origin and why you need it, or buy elsewhere.",
    ),
    "merchant_stopped": Problem(
        403,
        6,
        "The merchant took money and did not serve, so it is stopped",
        "Ask the merchant about the payments that it did not serve. Then allow new ones: payagent merchants "
        "resume NAME. Proofs of earlier payments are still presented.",
        agent="Only a person can allow new payments to this merchant. Tell them, or buy elsewhere.",
    ),
    "merchant_timeout": Problem(
        504,
        4,
        "The merchant did not answer in time",
        "Try again later. proxy.read_timeout_s says how long the proxy waits.",
        money="No money moved.",
        retryable=True,
        agent=_AGAIN_LATER,
    ),
    "merchant_unreachable": Problem(
        502,
        4,
        "The merchant cannot be reached",
        "Try again later.",
        money="No money moved.",
        retryable=True,
        agent=_AGAIN_LATER,
    ),
    "method_not_allowed": Problem(
        405, 2, "The path does not support this method", "/openapi.json lists the methods.", money=""
    ),
    "mnemonic_invalid": Problem(
        400,
        2,
        "The recovery words are not valid",
        "Give 24 words of the English BIP-39 list, in order.",
        money="",
    ),
    "network_mismatch": Problem(
        422,
        3,
        "The invoice is for another network",
        "Use a payagent that is configured for that network.",
        agent=_MERCHANTS_FAULT,
    ),
    "not_an_invoice": Problem(
        422,
        3,
        "The 402 is not an invoice",
        "Present the proof of the earlier payment again, or make the request to the merchant anew.",
        agent="Repeat the same call. If that does not help, the merchant must correct its 402.",
    ),
    "not_enough_funds": Problem(
        409,
        7,
        "Not enough available funds",
        "Fund the wallet. `payagent wallet show` lists what is available and what is held.",
        retryable=True,
        agent="Only a person can fund the wallet. Tell them, or buy something cheaper.",
    ),
    "not_found": Problem(
        404,
        2,
        "Not found",
        "Check the id or the name in the list command.",
        money="",
        agent="Correct the id or the name. The tool that lists them shows what there is.",
    ),
    "not_served_yet": Problem(
        504,
        8,
        "The merchant has not served the request yet",
        _PROOF_AGAIN,
        money=_PAID,
        retryable=True,
        agent=_AGAIN,
    ),
    "not_signed_yet": Problem(
        503,
        8,
        "The payment is not signed yet",
        "Repeat the same request. It finds this payment.",
        money="Its money is held. Nothing was sent.",
        retryable=True,
        agent=_AGAIN,
    ),
    "paid_not_served": Problem(
        502,
        8,
        "Paid, but the merchant answers 402 instead of serving",
        f"{_PROOF_AGAIN} If the merchant still refuses, give it the transaction's hash. Never pay what "
        "`merchant_answer` asks for.",
        money=_PAID,
        retryable=True,
        agent="Repeat this call unchanged later: it pays nothing more. If that does not help, tell a person.",
    ),
    "passphrase_too_short": Problem(
        400, 2, "The passphrase is too short", "Choose a longer one. Nothing was created.", money=""
    ),
    "paused": Problem(
        503,
        4,
        "The operator has paused the wallet",
        "An operator ends the pause with `payagent resume`. A restart does not end it.",
        money="Nothing was signed. Earlier holds stay. A new request holds nothing.",
        retryable=True,
        agent="Only a person can end the pause. Repeat the same call after that.",
    ),
    "payment_ended": Problem(
        502,
        3,
        "The payment ended without paying",
        "Repeat the call. It opens a new payment.",
        money="Nothing was paid and its money is free again.",
        retryable=True,
        agent="Repeat the same call. It opens a new payment.",
    ),
    "payment_void": Problem(
        409,
        3,
        "The payment does not go through",
        "Nothing to do. payagent cancels the payment, which then ends as void.",
        money=_HELD_UNTIL_CANCELLED,
        agent="Wait until the payment has ended. Then repeat the same call, which pays anew.",
        reasons={
            "expired": ProblemReason("The transaction expired and could not be replaced"),
            "not_broadcast": ProblemReason("The merchant did not submit the transaction in time"),
            "merchant_refused": ProblemReason("The merchant refused the transaction unsubmitted"),
            "parent_replaced": ProblemReason(
                "The payment whose change it spends was replaced",
                "Repeat the call to pay anew. The old transaction can never land.",
                "Its money is free again.",
                agent="Repeat the same call, which pays anew.",
            ),
            "channel_moved": ProblemReason("The merchant moved the channel before the transaction landed"),
            "cancelled_by_operator": ProblemReason(
                "The operator cancelled the payment",
                "Ask the operator why. Once the payment is void, the same call can be paid anew.",
                f"{_HELD_UNTIL_CANCELLED} If nothing was signed, it is free at once.",
                agent="Ask a person why, before you repeat the call.",
            ),
        },
    ),
    "price_changed": Problem(
        403,
        6,
        "The price rose too much, or is in another asset",
        "If the price is right, run `payagent payments approve ID`. Later prices are then compared with this one. "
        "merchants.NAME.price_rise_percent_max sets the rise that needs no approval.",
        money=STILL_ASKED,
        agent="Only a person can approve the new price. Repeat the same call after that.",
    ),
    "project_id_missing": Problem(
        400,
        2,
        "The provider needs a project id",
        "Get one for this network at https://blockfrost.io. Save it in a file that only you can read, and set "
        "token_file to its path.",
        money="",
    ),
    "provider_untrusted": Problem(
        503,
        4,
        "The provider's answers are contradictory",
        "Check chain.providers, and run `payagent doctor`.",
        money="",
        agent=_TELL_PERSON,
    ),
    "rate_limited": Problem(
        429,
        4,
        "Too many requests",
        "Try again after Retry-After. The operator can raise api.rate_limit_per_s and "
        "api.concurrent_requests_max.",
        money="",
        retryable=True,
        agent="Repeat the same call in some seconds, and make fewer calls at once.",
    ),
    "recovery_words_on_disk": Problem(
        400,
        5,
        "The recovery words are stored beside the keystore",
        "Copy the words to a place off this machine, then delete the file.",
        money="",
    ),
    "request_too_big_to_replay": Problem(
        413,
        2,
        "The request's body is too big to send again with the proof",
        "Raise proxy.body_buffer_bytes_max, or free space for temporary files.",
        agent="Send a smaller request.",
    ),
    "resource_mismatch": Problem(
        422,
        3,
        "The 402 sells another resource than the requested one",
        "Request the resource that it names. If both are the same, the merchant should name the URL of the "
        "request. If only host or port differ, set merchants.NAME.resource_origins.",
        agent=_MERCHANTS_FAULT,
    ),
    "restored_recently": Problem(
        503,
        4,
        "The ledger was restored from a backup recently",
        "Wait until the given time. Meanwhile find out what was bought since the backup.",
        retryable=True,
        agent="Repeat the same call after the time in the detail.",
    ),
    "signer_away": Problem(
        503,
        4,
        "The HSM cannot sign now",
        "Check that the HSM and its connector run. payagent asks it again by itself.",
        money="An admitted payment keeps its money held and is signed once the HSM is back, if its invoice has "
        "time left then.",
        retryable=True,
        agent="Repeat the same call in a minute.",
    ),
    "signer_lost": Problem(
        503,
        4,
        "The process that holds the key has ended",
        "The daemon ends too. Start it again, and look in the system log for what ended the process.",
        money="Nothing was signed since. Admitted payments keep their money held and are signed after the start.",
        retryable=True,
        agent=_TELL_PERSON,
    ),
    "signer_refused": Problem(
        500,
        1,
        "The signer refused the transaction",
        "This is a bug, or the daemon was manipulated. Stop it and report the detail.",
        money="Nothing new was signed. If nothing ever was, the payment is rejected and its money is free. "
        "Otherwise its money stays held, because an earlier transaction may still land.",
        agent=_TELL_PERSON,
    ),
    "signer_wrong": Problem(
        503,
        4,
        "The HSM signs wrongly",
        "Nothing is signed until the daemon is restarted. Run `payagent doctor` first, and find out whether the "
        "HSM, its module or its keys were changed.",
        money="Nothing was submitted. Admitted payments keep their money held.",
        agent=_TELL_PERSON,
    ),
    "split_ambiguous": Problem(
        422,
        3,
        "The revenue share can be read in more than one way",
        "Set split_mode for the merchant. " + _TELL_MERCHANT,
        agent=_TELL_PERSON,
    ),
    "store_failed": Problem(
        503,
        1,
        "The ledger cannot be read or written",
        "Free or repair the disk. If that does not help, restart payagent. On PostgreSQL, check the server and "
        "its standbys, then ask again with the same key. Nothing is signed meanwhile.",
        money="Committed payments are safe.",
        retryable=True,
        agent=_TELL_PERSON,
    ),
    "tables_missing": Problem(
        503,
        2,
        "The database has no ledger",
        "Check store.url. To move a ledger there, a new one too, run `payagent store copy --to URL`.",
        money="Without the ledger payagent could pay twice, so it does not start.",
    ),
    "terms_changed": Problem(
        409,
        6,
        "The same invoice id came with other terms",
        "Do not pay it. Ask the merchant.",
        money="A payment for the first terms stands. Nothing new was signed.",
        agent="Do not buy this in another way. Tell a person.",
    ),
    "terms_not_understood": Problem(
        422,
        3,
        "The 402 has a money term that payagent does not know",
        "The detail names the field. " + _TELL_MERCHANT,
        agent=_MERCHANTS_FAULT,
    ),
    "topup_in_progress": Problem(
        409,
        8,
        "Another top-up of the same balance is in progress",
        "Wait until it is done. `payagent prepaid list` shows it.",
        retryable=True,
    ),
    "topup_not_configured": Problem(
        400,
        2,
        "No request is known that buys prepaid balance",
        "Set path in merchants.NAME.topup, or name an ordinary call that costs money: --path and --data-file.",
    ),
    "topup_stopped": Problem(
        409,
        3,
        "The top-up stopped before its goal",
        "Order what is missing again, if it is still wanted.",
        money="What the top-up has already bought stays bought. Nothing more is paid for it.",
        reasons={
            "cancelled": ProblemReason("The top-up was cancelled"),
            "timed_out": ProblemReason(
                "The top-up was not done within 24 hours",
                "The detail says what went wrong. Fix it, then order what is missing again.",
            ),
            "request_refused": ProblemReason(
                "The merchant refuses the top-up's request",
                "Correct the request: merchants.NAME.topup, or --path, --method and --data-file.",
            ),
            "too_small": ProblemReason(
                "One payment costs more than the whole top-up",
                "If the price is right, order at least that much. --dry-run shows the price.",
            ),
            "wrong_asset": ProblemReason(
                "The merchant sells in another asset than ordered",
                "Order in the asset that the merchant asks for, or in calls. --dry-run shows the price.",
            ),
            "nothing_sold": ProblemReason(
                "The merchant sells no prepaid balance for this request",
                "If calls are left, use them first. Otherwise name a call that is sold in batches, or set the "
                "merchant's own request in merchants.NAME.topup.",
            ),
            "app_revoked": ProblemReason(
                "The app that ordered the top-up has no valid token",
                "Run `payagent app rotate-token NAME`, or use another app. Then order what is missing again.",
            ),
        },
    ),
    "transfer_invalid": Problem(
        400,
        2,
        "The transfer is not valid",
        "Give an address of this network, an amount that an output can hold, and no more UTxOs than fit one "
        "transaction. See `payagent wallet send --help` and `payagent wallet split --help`.",
    ),
    "unauthorized": Problem(
        401,
        5,
        "No valid token",
        "Send `Authorization: Bearer <app token>`.",
        money="",
        agent="Only a person can give you a valid token. Tell them.",
    ),
    "utxos_too_small": Problem(
        409,
        7,
        "Funds are spread over too many small UTxOs",
        f"{_MERGE_UTXOS} Or fund the wallet with one larger UTxO.",
        agent="Only a person can merge or fund the wallet's UTxOs. Tell them, or buy something cheaper.",
        reasons={
            "inputs": ProblemReason("Funds are spread over too many small UTxOs"),
            "transaction_size": ProblemReason("The transaction would be too big"),
            "header_size": ProblemReason("The transaction is too big for an HTTP header"),
        },
    ),
    "wallet_address_required": Problem(
        422,
        3,
        "The merchant requires X-Wallet-Address",
        "Repeat the call with X-Wallet-Address. `payagent wallet address` prints the address.",
        agent="Tell a person, or buy elsewhere.",
        argument="If you set X-Wallet-Address in `headers`, first repeat the call without it.",
    ),
    "websocket_not_supported": Problem(
        501, 2, "The proxy does not support WebSockets", "Connect to the merchant directly.", money=""
    ),
    "write_failed": Problem(
        500,
        2,
        "The output could not be written",
        "Free disk space, then run the same command again.",
        money="",
        reasons={
            "answer": ProblemReason(
                "The answer could not be written",
                "Free disk space. See `payagent payments list` before you repeat the command.",
                "The command was carried out.",
            ),
            "merchant_answer": ProblemReason(
                "The merchant's answer could not be written",
                "Free disk space or name another file, then repeat the command. It presents the same proof.",
                "The payment stands. The same call pays nothing again.",
                retryable=True,
            ),
            "backup": ProblemReason(
                "The backup or restore could not be written",
                "Free disk space or name another place, then repeat the command. Nothing is left of this one.",
                retryable=True,
            ),
        },
    ),
    "wrong_state": Problem(
        409,
        2,
        "The current state does not allow this",
        "See `payagent payments show ID`, or `payagent prepaid list` for a top-up.",
        money="Nothing has changed.",
    ),
}
