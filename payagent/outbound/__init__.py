"""merchants: what payagent itself asks a merchant: how an invoice stands, what is left of a prepaid balance;
and the call of a top-up.

May import: core, dialects, outbound.egress, httpx, structlog. Never: pays, follows a redirect, keeps a cookie,
reads proxies from the environment, or calls anything but a configured origin, at a path that is fixed or the
operator's.
"""
