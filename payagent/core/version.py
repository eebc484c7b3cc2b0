"""What payagent calls itself where it calls others. A call that it makes for a client keeps the client's name.

May import: nothing. Never: anything but names.
"""

VERSION = "0.1.0"
USER_AGENT = f"payagent/{VERSION}"
