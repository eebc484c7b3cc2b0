"""Parses a 402 that an app forwards into a `PaymentIntent`, under the current config.

Start with `Intake.offers` and `Intake.intent`. A refusal before there is a payment is recorded, within
the bounds of `RefusalThrottle`.
Never: decides; reserves.
"""

import asyncio

from payagent.agent.base import merchant_trust
from payagent.agent.base.config import MerchantConfig
from payagent.agent.base.prepaid import Buyer, TopupPart, fitting
from payagent.agent.base.requests import MerchantRequest, PaymentIntent, PaymentRequest
from payagent.agent.commits.reservation import is_priced, note_price
from payagent.agent.context import AgentContext
from payagent.core.invoice import Invoice
from payagent.core.problems import Refused
from payagent.core.token_bucket import Rate, TokenBucket
from payagent.dialects import Reading, read_offers
from payagent.store.db.unit import Unit
from payagent.store.rows import writes

REFUSALS_AT_ONCE = 1_000
"""Refusals recorded in a row for an app that had none recently."""

REFUSAL_EVERY_S = 60
"""After that, seconds per recorded refusal. With the longest 402 this is about 400 MB a day."""


class RefusalThrottle:
    """Limits how many refusals of one app are recorded, because a record stays for good.

    A program that sends requests in a loop must not fill the disk. Every refusal is still returned, and counted in
    the metrics. A recorded refusal takes `REFUSAL_EVERY_S` tokens of a bucket that gains one per second. `now_s`
    comes from a monotonic clock.
    """

    def __init__(self) -> None:
        self._buckets: dict[str, TokenBucket] = {}

    def has_room(self, app_id: str, now_s: float) -> bool:
        """Whether another refusal of the app may be recorded."""
        now_ms = int(now_s * 1000)
        if app_id not in self._buckets:
            self._buckets[app_id] = TokenBucket(Rate(1, REFUSALS_AT_ONCE * REFUSAL_EVERY_S), now_ms)
        return self._buckets[app_id].wait_ms(REFUSAL_EVERY_S, now_ms) == 0

    def note(self, app_id: str) -> None:
        """Count one recorded refusal of the app, after `has_room`."""
        self._buckets[app_id].take(REFUSAL_EVERY_S)


RECEIVED_MAX_CHARS = 4000
"""Characters of a refused 402 that are recorded."""


class Intake:
    """Parses offers and records refusals. In memory it keeps only how often each app was refused recently."""

    def __init__(self, context: AgentContext) -> None:
        self._context = context
        self._throttle = RefusalThrottle()

    def offers(
        self, merchant: MerchantConfig, payment_request: PaymentRequest, now_ms: int
    ) -> tuple[Invoice, ...]:
        """The 402's offers, for a top-up only those that fit it. Refuses whatever is not understood in full."""
        return fitting(
            read_offers(payment_request.response, self.reading(merchant, payment_request, now_ms)),
            payment_request.topup,
        )

    def reading(self, merchant: MerchantConfig, payment_request: PaymentRequest, now_ms: int) -> Reading:
        """What reading a 402 of the merchant depends on."""
        return Reading(
            origin=merchant.origin,
            call=None if payment_request.request is None else payment_request.request.call(merchant.origin),
            salt=bytes.fromhex(self._context.ports.randomness.token_hex(32))
            if merchant.request_commitment
            else None,
            proof=merchant.proof,
            resource_origins=merchant.resource_origins,
            assets=self._context.assets_allowed(),
            network=self._context.config.network,
            split_mode=merchant.split_mode,
            received_at_ms=now_ms,
            decimals=self._context.config.decimals,
            own=self._context.config.own,
        )

    def intent(self, payment_request: PaymentRequest, offers: tuple[Invoice, ...], now_ms: int) -> PaymentIntent:
        """The `PaymentIntent` of a request, with fresh ids in case it is new."""
        request = payment_request.request
        return PaymentIntent(
            ids=self._context.new_ids(),
            app_id=payment_request.app_id,
            key=payment_request.key(offers[0].invoice_id) or "",
            derived=payment_request.idempotency_key is None and payment_request.topup is None,
            fingerprint=payment_request.fingerprint,
            request=None if request is None else f"{request.method} {request.path} {request.body_sha256}",
            invoice=offers[0],
            offers=offers,
            response=payment_request.received,
            received_at_ms=now_ms,
            heard_at_ms=now_ms if payment_request.heard_at_ms is None else payment_request.heard_at_ms,
            max_total_units=payment_request.max_total_units,
            max_total_asset=payment_request.max_total_asset,
            is_heard=payment_request.heard_at_ms is not None or payment_request.topup is not None,
            min_window_s=self._context.config.min_window_s,
            buyer=payment_request.buyer or self.buyer(payment_request.origin, payment_request.request),
            topup=payment_request.topup,
            purpose=payment_request.purpose,
        )

    def buyer(self, origin: str, request: MerchantRequest | None) -> Buyer:
        """Whose prepaid balance a request uses: from the request's headers, else from the config."""
        headers = request.headers if request is not None else {}
        partner = self._context.config.merchant(origin).partner or ""
        return Buyer.named(
            headers.get("x-partner", partner), headers.get("x-wallet-address", self._context.public_address)
        )

    async def note_refusal(
        self, payment_request: PaymentRequest, refusal: Refused, intent: PaymentIntent | None, now_ms: int
    ) -> None:
        """Count and record a refusal that came before there was a payment, unless the app may simply retry.

        Also records the price, if we read the 402 from the merchant ourselves.
        """
        if refusal.problem.retryable and intent is None:
            return
        if not refusal.problem.retryable:
            config = self._context.config
            self._context.metrics.refuse(config, payment_request.app_id, payment_request.origin, refusal)
        is_heard = intent is not None and intent.is_heard
        is_new = intent is not None and is_heard and not is_priced(self._context.conn, intent)
        has_room = self.is_on_record(payment_request.app_id, payment_request.topup)
        is_recorded = not refusal.problem.retryable and has_room
        if is_recorded or (is_new and has_room):
            self.note_on_record(payment_request.app_id, payment_request.topup)

        def job(unit: Unit) -> None:
            if intent is not None and is_heard and (has_room or not is_new):
                note_price(unit, intent)
            if is_recorded:
                request = payment_request.request
                detail = {
                    **refusal.record,
                    **refusal.limit_record,
                    "detail": refusal.detail[:500],
                    "app": payment_request.app_id,
                    "origin": payment_request.origin[:200],
                    "request": None if request is None else f"{request.method} {request.path}"[:500],
                    "received": payment_request.received[:RECEIVED_MAX_CHARS],
                }
                writes.note(unit, None, "refused", None, now_ms, detail)
            if refusal.code == "terms_changed":
                merchant_trust.warn_of_terms(unit, payment_request.origin, refusal.detail, now_ms)

        await self._context.write("refuse", job)

    async def note_refused_call(
        self, app_id: str, origin: str | None, request: str | None, refusal: Refused
    ) -> None:
        """Count and record the refusal of a request that was not sent, unless the app may simply retry.

        `request`: method and path.
        """
        if refusal.problem.retryable:
            return
        self._context.metrics.refuse(self._context.config, app_id, origin, refusal)
        if not self.is_on_record(app_id):
            return
        self.note_on_record(app_id)
        about = {"app": app_id, "origin": origin, "request": request and request[:500]}
        detail = {**refusal.record, **refusal.limit_record, **about}
        await self._context.write_at(
            "refuse", lambda unit, now_ms: writes.note(unit, None, "refused", None, now_ms, detail)
        )

    def is_on_record(self, app_id: str, topup: TopupPart | None = None) -> bool:
        """Whether a refusal of the app is to be recorded. Refusals of a top-up always are, because they end it."""
        return topup is not None or self._throttle.has_room(app_id, asyncio.get_running_loop().time())

    def note_on_record(self, app_id: str, topup: TopupPart | None = None) -> None:
        """Count one more recorded refusal of the app."""
        if topup is None:
            self._throttle.note(app_id)
