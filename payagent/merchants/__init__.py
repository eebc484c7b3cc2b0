"""merchants: what payagent itself asks a merchant: how an invoice stands, what is left of a prepaid balance.

May import: core, dialects, httpx. Never: pays, follows a redirect, reads proxies from the environment, or
builds an address from anything but the configured origin and a fixed path.
"""
