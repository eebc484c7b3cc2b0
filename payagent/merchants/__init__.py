"""merchants: what payagent itself asks a merchant; for now how an invoice stands.

May import: core, dialects, httpx. Never: pays, follows a redirect, reads proxies from the environment, or
builds an address from anything but the configured origin and a fixed path.
"""
