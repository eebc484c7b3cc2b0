"""The bodies of requests and responses: one model parses or writes each, and describes it in /openapi.json.

May import: core, dialects, agent, audit, store, api.http, pydantic. Never: decides on a request.
"""
