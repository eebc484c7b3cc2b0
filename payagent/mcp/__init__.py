"""The mcp room: the wallet as an MCP server, in a process of its own. Agents pay through it, with an app's token.

Start with `server`, the tools, resources and prompts. `calls` makes the requests that are paid, and keeps them
going when an agent stops waiting. `results` is what the tools return. `daemon` asks the daemon.
Paid MCP servers: `paid_calls` puts their calls into the form of HTTP, and `paid_server` is the connection to one.
`paid_proxy` serves one to an agent as a local server, and `paid_tools` lets the wallet's server call them.
Never: holds a key; decides whether to pay, which is the daemon's task; returns a secret or an approval link.
"""
