"""The outbound room: requests that payagent makes by itself, to merchants and to the operator's targets.

`merchant_client` asks a merchant for the status of an invoice or for a prepaid balance, and makes the request of a
top-up. `webhook`, `push` (ntfy, Slack, Discord) and `telegram` deliver notifications. `egress` decides where
merchant requests may connect to.
Never: pays, follows a redirect, keeps a cookie, reads proxies from the environment, or calls anything but a
configured origin, at a path that is fixed or set by the operator.
"""
