"""The bodies of requests and responses: one model parses or writes each, and describes it in /openapi.json.

Never: decides on a request.
"""
