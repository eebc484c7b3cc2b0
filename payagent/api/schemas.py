"""The shapes of bodies, for /openapi.json. They describe; `reading` and `views` do.

May import: core, dialects, pydantic. Never: validates a call.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.json_schema import models_json_schema

from payagent.api.problems import MEDIA_TYPE
from payagent.api.tokens import TOKEN_PATTERN
from payagent.core.bounds import SPLIT_COUNT_MAX, TokenScope
from payagent.core.invoice import Proof
from payagent.core.payment import Delivery, State
from payagent.dialects import Said

Units = Annotated[str, Field(pattern=r"^(0|[1-9][0-9]{0,18})$", description="Smallest units, as digits.")]
SignedUnits = Annotated[str, Field(pattern=r"^-?(0|[1-9][0-9]*)$", description="Smallest units; debits positive.")]
Time = Annotated[str, Field(pattern=r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9:]{8}\.[0-9]{3}Z$")]
Hex = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Amounts = dict[str, Units]
LimitName = Literal["per_payment", "per_hour", "per_day", "per_week", "per_month", "total"]


def _absent(description: str) -> Any:
    """A field that need not be there, and is not null when it is."""
    return Field(default_factory=lambda: None, description=description)


def _closed(*either: str) -> ConfigDict:
    """No other keys; and exactly one of `either`, when there are any."""
    choice: dict[str, Any] = {"oneOf": [{"required": [key]} for key in either]} if either else {}
    return ConfigDict(extra="forbid", json_schema_extra=choice)


class _Closed(BaseModel):
    model_config = _closed()


class CallBought(_Closed):
    """The call that is to be bought; with the origin, it is what the intent is known by."""

    method: Annotated[str, Field(pattern=r"^[A-Z]{1,16}$")]
    path: Annotated[str, Field(pattern=r"^/[!-~]{0,8191}$", description="With its query.")]
    body_sha256: Hex
    headers: dict[str, str] | list[tuple[str, str]] = _absent("Those that the merchant may bind the payment to.")


class Response402(_Closed):
    """The answer as received. Its body as a JSON value, or as text, or in base64 byte for byte."""

    model_config = _closed("body", "body_base64")

    status: Annotated[int, Field(ge=100, le=599)]
    headers: dict[str, str] | list[tuple[str, str]] = {}
    body: Any = _absent("A JSON value, or the text as received.")
    body_base64: str = _absent("The bytes as received.")


class PaymentRequest(_Closed):
    """A 402 that is to be paid."""

    origin: Annotated[str, Field(description="Scheme, host and port of the server that answered.")]
    request: CallBought = _absent("The call that is bought.")
    response: Response402
    max_total: Units = _absent("A bound on what leaves in the invoice's asset, fee included.")
    max_total_asset: str = _absent("What `max_total` is of: nothing is paid in another asset. Else: in whichever.")


class DeliveryReport(_Closed):
    """What the retry got. Headers and body, in the forms of `response` of a payment, tell more of a 402."""

    status: Annotated[int, Field(ge=100, le=599)]
    headers: dict[str, str] | list[tuple[str, str]] = {}
    body: object = _absent("The answer's body: JSON as received, or text.")
    body_base64: str = _absent("The answer's body, in base64, instead of `body`.")
    unanswered: str = _absent("In one line why no answer came to a proof that was sent; `status` is 504 then.")


class SplitOrder(_Closed):
    """Fan out into so many coins of pure ADA."""

    count: Annotated[int, Field(ge=1, le=SPLIT_COUNT_MAX)]
    lovelace: Units


class ThawOrder(_Closed):
    """Sign again after coins were spent elsewhere."""

    seen: list[Hex] = _absent(
        "The transactions that were looked at, as `frozen_by` of the wallet has them. Without it all are cleared."
    )


class SendOrder(_Closed):
    """Send `units` of `asset`, or all that is free."""

    model_config = _closed("units", "all")

    address: str
    asset: str = "lovelace"
    units: Units = _absent("How much.")
    all: Literal[True] = _absent("Everything.")


class MerchantOrder(_Closed):
    """A merchant that may be paid from now on. What is not given is as in the config file's defaults."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9]+([_-][a-z0-9]+)*$")]
    origin: Annotated[str, Field(description="Scheme, host and port; https, but on this machine.")]
    known_as: list[str] = _absent("Origins by which its x402 may name what it sells. No call goes there.")
    partner: Annotated[str, Field(pattern=r"^[!-~]{1,128}$")] = _absent("X-Partner of the calls.")
    proof: Proof = "tx_hash"
    ready: Literal["signed", "submitted", "confirmed"] = "confirmed"
    split_mode: Literal["additional", "inclusive", "outputs"] = _absent("How a split without a mode is read.")
    request_commitment: bool = False
    timeout_s: Annotated[int, Field(ge=1, le=600)] = 30


class TopupCall(_Closed):
    """An ordinary call that costs money, whose 402 sells a batch. `body` is sent as JSON, as it stands."""

    method: Annotated[str, Field(pattern=r"^[A-Z]{1,16}$")]
    path: Annotated[str, Field(pattern=r"^/[!-~]{0,8191}$", description="With its query.")]
    body: str = _absent("The body's text.")


class TopupOrder(_Closed):
    """Raise the balance at a merchant until so much is paid, fees not counted."""

    merchant: Annotated[str, Field(description="Its name in the config, or its origin.")]
    units: Units
    asset: str = "lovelace"
    request: TopupCall = _absent("Without it the request of merchants.NAME.topup is made.")
    dry_run: bool = False


class Output(BaseModel):
    role: Literal["pay_to", "split", "change"]
    address: str
    asset: str
    units: Units


class Block(BaseModel):
    hash: Hex
    height: int
    slot: int


class Reason(BaseModel):
    code: str
    detail: str | None


class Payment(BaseModel):
    """A payment. `headers` is exactly what the client adds to its retry, once the attempt is durable."""

    id: str
    kind: Literal["invoice", "send", "split", "sweep"]
    app: Annotated[str, Field(description="The id of the app that ordered it.")]
    state: State
    delivery: Delivery
    network: str
    dialect: str | None
    origin: str | None
    invoice_id: str | None
    outputs: list[Output]
    fee: Units | None
    tx_hash: Hex | None
    ttl_slot: int | None
    anchor: str | None
    proof: Proof
    handed_over: bool
    headers: dict[str, str]
    ready: bool
    request_id: str
    idempotency_key: str
    merchant_status: str | None
    block: Block | None
    batch_target: int | None
    expires_at: Time | None
    created_at: Time
    changed_at: Time
    reason: Reason = _absent("There when the payment was refused.")
    approval: "ApprovalTold" = _absent("There when a person was asked.")


class LeftBehind(BaseModel):
    """What an order to send everything left where it is: coins with tokens of which nothing may leave.

    `assets` names the first eight of them; `detail` tells why, and how to come by the ADA.
    """

    coins: int
    lovelace: Units
    assets: list[str]
    detail: str


class Sent(Payment):
    """The order's payment. `outputs` are what leaves."""

    left_behind: LeftBehind = _absent("There when everything was to be sent, and some of it may not leave.")


class LimitStanding(BaseModel):
    """`app` and `merchant`: whose spending it bounds; null: whoever's.

    `spent` is what its window counts now, and `frees_at` when the oldest of that does so no more. To a token that
    only pays, of a limit that others share: what its app spent, and `left` is null.
    """

    app: str | None
    merchant: str | None
    asset: str
    limit: LimitName
    most: Units
    spent: Units
    left: Units | None
    frees_at: Time | None
    set_by: Literal["config", "operator"]


class TransactionOutput(BaseModel):
    role: Literal["pay_to", "split", "change"]
    address: str
    lovelace: Units
    assets: Amounts


class TransactionTold(BaseModel):
    """A transaction as it would have been when it was asked about: every output, also the change."""

    outputs: list[TransactionOutput]
    fee: Units
    size: int


class MerchantHistory(BaseModel):
    """What there was with a merchant before: payments that were paid, that ended otherwise, and what was spent."""

    paid: int
    last_at: Time | None
    not_paid: int
    under_way: int
    spent: Amounts


class ApprovalTold(BaseModel):
    """What a person is asked. `at_most` is what it counts against the limits: no more leaves if it is approved.

    `calls`: how many calls it buys. `terms_hash` is what is decided on. The last four are for those who see more
    than their own payments.
    """

    calls: int
    reasons: list[Reason]
    terms_hash: Hex
    transaction: TransactionTold
    at_most: Amounts
    asked_at: Time
    ends_at: Time
    decision: Literal["approved", "denied", "timed_out"] | None
    via: Literal["token", "link", "clock"] | None
    decided_at: Time | None
    app: str = _absent("The app that wants to pay.")
    request: str | None = _absent("The call that is bought.")
    by: str | None = _absent("The app that decided.")
    limits: list[LimitStanding] = _absent("The limits that bind it, with what they leave now.")
    history: MerchantHistory = _absent("What there was with the merchant.")


class Happening(BaseModel):
    """Something that happened to a payment, and the state that it was in afterwards."""

    event: str
    state: State
    at: Time
    detail: dict[str, object]


class EventTold(BaseModel):
    """Something that happened: to a payment, or (null) to the wallet as a whole."""

    seq: int
    payment: str | None
    event: str
    state: State | None
    detail: dict[str, object]
    at: Time


class ReceiptTold(BaseModel):
    """Everything that is recorded of a payment; `payagent ledger verify --receipt` checks it without a daemon.

    Each part has the columns of the ledger's tables. `decisions` and `answers` repeat some of `events` for people;
    in `events`, `detail` is the text that the hash is of.
    """

    format: Literal["payagent-receipt/1"]
    network: str
    wallet: str
    payment: dict[str, object]
    intent: dict[str, object]
    invoice: dict[str, object] | None
    other_invoices: list[dict[str, object]]
    decisions: list[dict[str, object]]
    holds: list[dict[str, object]]
    attempts: list[dict[str, object]]
    sightings: list[dict[str, object]]
    answers: list[dict[str, object]]
    entries: list[dict[str, object]]
    events: list[dict[str, object]]
    ledger: dict[str, object]


class Attempt(BaseModel):
    """One signed transaction: it pays, or takes the coins back."""

    kind: Literal["pay", "cancel"]
    tx_hash: Hex
    fee: Units
    ttl_slot: int


class PaymentWithHistory(Payment):
    """`depth`: blocks from the payment's own to the newest, both counted; null while it is in none."""

    depth: int | None
    attempts: list[Attempt]
    history: list[Happening]


class MerchantAnswer(BaseModel):
    """What the merchant said to the retry. `again_after_s`: show the same proof again then; null: do not.

    With `poll_query` the call is then repeated without the proof, and with this added to its query.
    """

    said: Said
    reason: str
    again_after_s: float | None
    poll_query: str | None


class PaymentWithAnswer(Payment):
    answer: MerchantAnswer


class Payments(BaseModel):
    """`awaiting_approval`: how many of all that the app sees wait for a person, on whatever page."""

    awaiting_approval: int
    payments: list[Payment]
    cursor: str | None


class Merchant(BaseModel):
    """Who may be paid. `call_headers` belong in every call to it, the first one too.

    `known_as`: origins by which its x402 may name what it sells, besides the one that is called.
    """

    name: str
    origin: str
    known_as: list[str]
    ready: Literal["signed", "submitted", "confirmed"]
    call_headers: dict[str, str]
    set_by: Literal["config", "operator"]


class Merchants(BaseModel):
    merchants: list[Merchant]


class PinOrder(_Closed):
    """Whom a merchant may have paid: itself (`pay_to`), or one that gets a share."""

    role: Literal["pay_to", "split"]
    address: str


class KnownAddress(BaseModel):
    role: Literal["pay_to", "split"]
    address: str
    set_by: Literal["config", "daemon"]


class AgreedPrice(BaseModel):
    """What was agreed to for so many calls at once, of a path without its query."""

    method: str
    path: str
    asset: str
    calls: int
    units: Units


class MerchantKnown(Merchant):
    """A merchant, what its invoices are held to, and what is known of it. null: that guard is off.

    `strikes`: how many payments in a row it took and did not serve; `stopped_at`: since when none is made to it.
    """

    pin: Literal["first_use", "config", "off"]
    addresses: list[KnownAddress]
    drift_percent: int | None
    prices: list[AgreedPrice]
    stop_after: int | None
    strikes: int
    stopped_at: Time | None
    in_flight: int
    in_flight_max: int | None


class QuoteAnswer(BaseModel):
    """What paying would take now. Nothing is reserved."""

    network: str
    dialect: str
    origin: str
    invoice_id: str
    batch_target: int | None
    outputs: list[Output]
    fee: Units
    total: Units
    spend: Amounts
    size: int
    expires_at: Time | None
    within_limits: bool
    approval: list[Reason] = _absent("There when a person would be asked first: why.")
    refusal: Reason = _absent("There when a limit or a guard stands against it.")


class AssetBalance(BaseModel):
    asset: str
    available: Units
    held: Units
    total: Units


class CoinCounts(BaseModel):
    free: int
    reserved: int
    pending: int
    locked: int
    missing: int


class ChainSeen(BaseModel):
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
    chain: ChainSeen


class Utxo(BaseModel):
    ref: str
    lovelace: Units
    assets: Amounts
    state: Literal["free", "reserved", "pending", "locked", "missing"]
    reserved_for: str | None


class Utxos(BaseModel):
    utxos: list[Utxo]


class Thawed(BaseModel):
    tx: str | None
    txs: list[str]


class PauseOrder(_Closed):
    """Stop all signing."""

    reason: str = _absent("Why: it is recorded, and told to who is refused.")


class PauseTold(BaseModel):
    """Whether signing is paused. `by` and `reason` are told to those who read the books or operate."""

    paused: bool
    since: Time | None
    by: str | None
    reason: str | None
    already: bool = _absent("There, and true, when it was paused before: all this is of that pause, which stands.")


class Posting(BaseModel):
    account: str
    asset: str
    units: SignedUnits


class Entry(BaseModel):
    id: int
    kind: str
    payment: str | None
    ref: str | None
    at: Time
    postings: list[Posting]


class Entries(BaseModel):
    entries: list[Entry]
    cursor: str | None


class Balances(BaseModel):
    balances: list[Posting]
    sums: dict[str, SignedUnits]


class Spent(BaseModel):
    """`payments`: how many took it, less those that a rollback took back."""

    asset: str
    paid: SignedUnits
    fees: SignedUnits
    sent: SignedUnits
    total: SignedUnits
    payments: int


class SpentBy(Spent):
    """With what it is told by. A merchant that is not configured goes by its origin; null: the operator's own."""

    merchant: str | None = _absent("By merchant: its name in the config.")
    origin: str | None = _absent("By merchant.")
    app: str = _absent("By app: its name.")
    day: str = _absent("By day, UTC.")
    month: str = _absent("By month, UTC.")


class Spending(BaseModel):
    """What left the wallet: by group and asset, and in all."""

    spend: list[SpentBy]
    totals: list[Spent]


class FindingTold(BaseModel):
    """What is wrong, and in which row of which table it shows."""

    table: str
    row: str
    what: str


class Verdict(BaseModel):
    """Of the findings, the first thousand; `checked` counts rows, or payments with all that belongs to them.

    `head` is the newest seal, by number and hash: it stands for every row up to it.
    """

    findings: list[FindingTold]
    clean: bool
    found: int
    head: str
    checked: dict[str, int]


class DifferenceTold(BaseModel):
    """What the chain and the books do not say alike, and in which row of which table it shows."""

    kind: Literal["missing", "foreign", "differing"]
    table: str
    row: str
    tx_hash: str | None
    what: str


class InFlightTold(BaseModel):
    """What the chain has and the books are about to have; or the other way round, with negative units."""

    tx_hash: str
    payment: str | None
    what: str
    units: dict[str, SignedUnits]


class StandingTold(BaseModel):
    """Of an asset: wallet + held, what is unspent at the address, and how much of the difference is in flight."""

    asset: str
    books: SignedUnits
    chain: SignedUnits
    in_flight: SignedUnits


class TipTold(BaseModel):
    height: int
    slot: int
    hash: Hex


class PrepaidCost(BaseModel):
    """What was paid for a balance in one asset, and how much of that is used up."""

    asset: str
    bought: Units
    used: Units
    left: Units


class MerchantSays(BaseModel):
    """A merchant's own word on a balance, as it was last heard."""

    remaining: Units | None
    total: Units | None
    used: Units | None
    unit: str | None
    expires_at: str | None
    understood: bool
    why_not: str | None
    source: Literal["balance", "credits"]
    status: int
    body: str
    at: str


class PrepaidHolding(BaseModel):
    """One balance, in `unit`: calls, or an asset. `coming`: what payments that are not confirmed yet will add."""

    merchant: str | None
    origin: str
    partner: str | None
    wallet: str
    unit: str
    bought: Units
    used: Units
    left: Units
    coming: Units
    unexplained: Units
    costs: list[PrepaidCost]
    merchant_says: MerchantSays | None
    difference: str | None


class Reconciliation(BaseModel):
    """Of each list, the first thousand. It is clean when nothing was found and nothing was left untold.

    `prepaid` is what merchants say beside what we count: their word is no finding.
    """

    findings: list[DifferenceTold]
    clean: bool
    complete: bool
    found: int
    could_not_tell: list[str]
    in_flight: list[InFlightTold]
    balances: list[StandingTold]
    checked: dict[str, int]
    since_slot: int
    provider: str | None
    tip: TipTold | None
    prepaid: list[PrepaidHolding]


class Limits(BaseModel):
    limits: list[LimitStanding]


class LimitsOrder(_Closed):
    """Limits of an app, a merchant (both by name), both together, or else of the wallet as a whole."""

    app: str = _absent("Default: any.")
    merchant: str = _absent("Default: any.")
    asset: str = _absent("Default: lovelace.")
    limits: Annotated[
        dict[LimitName, Units | None],
        Field(min_length=1, description="null: what the config file says counts again."),
    ]


Scopes = list[TokenScope]


class AppOrder(_Closed):
    """An app. Limits only tighten what binds the wallet as a whole."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    scopes: Scopes = _absent('Default: ["pay"].')
    merchants: list[str] = _absent("The only ones that it may pay, by name.")
    assets: list[str] = _absent("The only ones that it may pay in.")
    limits: dict[LimitName, Units] = _absent("Of the one asset of `assets`, else of lovelace.")
    expires_at: str = _absent("When its token ends, as RFC 3339. Default: never.")


class TokenOrder(_Closed):
    expires_at: str = _absent("When the new token ends, as RFC 3339. Default: never.")
    token: Annotated[str, Field(pattern=TOKEN_PATTERN)] = _absent(
        "Made by the caller of 32 random bytes, and kept already: none is lost with the answer."
    )


class AppTold(BaseModel):
    """An app. `active`: whether its last token is good now."""

    id: str
    name: str
    scopes: Scopes
    merchants: list[str] | None
    assets: list[str] | None
    active: bool
    token_made_at: Time | None
    expires_at: Time | None
    revoked_at: Time | None


class AppAdded(AppTold):
    """With its token, which is shown this once."""

    token: str


class AppsPage(BaseModel):
    apps: list[AppTold]
    caller: Annotated[str, Field(description="The id of the app whose token this call has.")]


class Health(BaseModel):
    status: Literal["ok"]


class Readiness(BaseModel):
    """`checks` and `providers` say "ok" or what is wrong, for each. A provider's word is not needed to be ready.

    What is wrong with a provider is why it is not heard, or not sent anything, at present. `code` is the problem
    that an order meets now, where one stands for what is wrong.
    """

    ready: bool
    code: str | None
    network: str
    checks: dict[str, str]
    providers: dict[str, str]


class ProblemAnswer(BaseModel):
    """RFC 9457, with what the refusal means for the money and what to do."""

    type: str
    title: str
    status: int
    detail: str
    instance: str
    code: Annotated[str, Field(pattern=r"^[a-z0-9_]+$")]
    retryable: bool
    money: str
    fix: str


# what no answer's model brings into the document by itself
_REFERRED: tuple[type[BaseModel], ...] = (
    PaymentRequest,
    DeliveryReport,
    SplitOrder,
    ThawOrder,
    SendOrder,
    TopupOrder,
    EventTold,
    LimitsOrder,
    PinOrder,
    AppOrder,
    TokenOrder,
    PauseOrder,
    MerchantOrder,
    ProblemAnswer,
)
_REF = "#/components/schemas/{model}"


class Prepaid(BaseModel):
    """What was bought ahead."""

    prepaid: list[PrepaidHolding]


class TopupRequestTold(BaseModel):
    method: str
    path: str


class Topup(BaseModel):
    """An order. `bought` counts in its `unit`, calls or an asset; `paid` is without fees."""

    id: str
    merchant: str | None
    origin: str
    partner: str | None
    wallet: str
    cause: Literal["order", "auto"]
    state: Literal["open", "stopping", "done", "stopped"]
    unit: str
    units: Units
    bought: Units
    paid: Amounts
    request: TopupRequestTold
    payments: list[str]
    created_at: Time
    ended_at: Time | None
    reason: Reason = _absent("There when it ends before so much was bought.")


class TopupsPage(BaseModel):
    topups: list[Topup]
    cursor: str | None


class Price(BaseModel):
    asset: str
    units: Units


class TopupPlanned(BaseModel):
    """What a top-up would take: `count` payments of `price`. `spend` is all that leaves the wallet."""

    merchant: str
    origin: str
    unit: str
    units: Units
    count: int
    price: Price
    total: Units
    calls: Units | None
    fees: Units
    spend: Amounts
    within_limits: bool
    approval: list[Reason] = _absent("There when a person would be asked about each payment first: why.")
    refusal: Reason = _absent("There when a limit or the wallet's funds stand against it.")


def takes(model: type[BaseModel], *, may_be_absent: bool = False) -> dict[str, Any]:
    """The part of an operation that describes its body."""
    schema = {"$ref": _REF.format(model=model.__name__)}
    return {"requestBody": {"required": not may_be_absent, "content": {"application/json": {"schema": schema}}}}


def gives(model: type[BaseModel], *statuses: int) -> dict[int | str, dict[str, Any]]:
    """The answers of an operation: these with the model, any other as a problem."""
    problem = {"schema": {"$ref": _REF.format(model=ProblemAnswer.__name__)}}
    described: dict[int | str, dict[str, Any]] = {
        status: {"model": model, "description": (model.__doc__ or model.__name__).strip()} for status in statuses
    }
    return described | {"default": {"description": "A refusal.", "content": {MEDIA_TYPE: problem}}}


def gives_text(media_type: str) -> dict[int | str, dict[str, Any]]:
    """The answers of an operation whose answer is text."""
    content = {media_type.partition(";")[0]: {"schema": {"type": "string"}}}
    return gives(ProblemAnswer) | {200: {"description": "Text.", "content": content}}


def streams(model: type[BaseModel]) -> dict[int | str, dict[str, Any]]:
    """The answers of an operation that streams events, each with the model as its data."""
    content = {"text/event-stream": {"schema": {"$ref": _REF.format(model=model.__name__)}}}
    return gives(ProblemAnswer) | {200: {"description": (model.__doc__ or "").strip(), "content": content}}


def add_schemas(document: dict[str, Any]) -> dict[str, Any]:
    """Put what `takes` and `gives` refer to into an OpenAPI document."""
    models: list[tuple[type[BaseModel], Literal["validation"]]] = [(model, "validation") for model in _REFERRED]
    _, described = models_json_schema(models, ref_template=_REF)
    document.setdefault("components", {}).setdefault("schemas", {}).update(described["$defs"])
    return document
