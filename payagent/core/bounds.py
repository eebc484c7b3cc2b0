"""Bounds on what one call may ask for, said once for the API and the command.

May import: nothing. Never: bounds money; that is `policy`.
"""

LIST_LIMIT_MAX = 200
SPLIT_COUNT_MAX = 250
"""More outputs than a transaction of 16 KiB can hold."""
