"""The proxy room: an HTTP client pays by changing its base URL.

Start with `app` (the daemon's proxy) or `single_merchant` (the port of `payagent proxy`).
- `request_scope` runs one request (`Exchange`), answers the client, and turns errors into answers. `request` reads
  which app it belongs to and where it goes.
- `unpaid_call` makes the request without a proof. `payer` pays a 402 and retries with the proof. `single_flight`
  lets identical requests share one payment. `shielded_tasks` finishes started steps even if the client hangs up.
- `headers` decides which headers are forwarded. `request_body` is the client's body. `http1` is the connection to
  the merchant, and `payment_required` reads its answer.
Never: FastAPI, a framework's request object, a followed redirect, a decision about a payment.
"""
