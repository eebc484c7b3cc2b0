"""A model on loopback that speaks OpenAI's chat completions and follows a script: buy an answer and repeat it."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

TOOL_CALL = {
    "id": "call_1",
    "type": "function",
    "function": {"name": "ask", "arguments": '{"message": "What is a lovelace?"}'},
}


def next_message(messages: list[dict[str, Any]]) -> dict[str, Any]:
    """Call the tool first, and repeat its result once it is there."""
    results = [message["content"] for message in messages if message["role"] == "tool"]
    if not results:
        return {"role": "assistant", "content": None, "tool_calls": [TOOL_CALL]}
    return {"role": "assistant", "content": f"I bought this: {results[-1]}"}


class _Model(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        message = next_message(asked["messages"])
        finish = "tool_calls" if message.get("tool_calls") else "stop"
        body = {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "created": 0,
            "model": asked["model"],
            "choices": [{"index": 0, "message": message, "finish_reason": finish}],
            "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
        }
        answer = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def scripted_model() -> Iterator[str]:
    """The base URL of a scripted model that runs."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Model)
    thread = Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
