"""The shapes of bodies, for /openapi.json. They describe; `reading` and `views` do.

May import: core, dialects, pydantic. Never: validates a call.
"""
