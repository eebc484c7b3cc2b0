"""The version and the User-Agent of payagent's own requests. A proxied request keeps the client's User-Agent.

Never: anything but constants.
"""

VERSION = "0.1.0"
USER_AGENT = f"payagent/{VERSION}"
