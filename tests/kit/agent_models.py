"""A model on loopback for agents' programs. It speaks Anthropic's, OpenAI's (Responses) and Google's API.

It follows a script: for each of the given arguments it calls payagent's tool `fetch`, then it says a text.
Requests without that tool, such as for a title, get the text.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

Json = dict[str, Any]
Event = tuple[str, Json]
TEXT = "That is all."
WAIT = "WaitForMcpServers"
"""Claude Code's tool for a model that finds a server's tools missing."""
WAITED = "toolu_wait"
_USAGE = {"input_tokens": 1, "output_tokens": 1}


class ScriptedModel(ThreadingHTTPServer):
    """`results` are what the program told the model of its calls, each as JSON."""

    def __init__(self, calls: list[Json]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.calls = calls
        self.results: list[str] = []
        self.url = f"http://127.0.0.1:{self.server_port}"

    def next_call(self, tool: str | None, results: list[str]) -> Json | None:
        """The arguments of the next call, or None if the model says its text."""
        if tool is None:
            return None
        self.results = results
        return self.calls[len(results)] if len(results) < len(self.calls) else None


class _Handler(BaseHTTPRequestHandler):
    server: ScriptedModel

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if self.path.startswith("/v1/messages"):
            events = _anthropic(self.server, asked)
        elif self.path.startswith("/v1/responses"):
            events = _openai(self.server, asked)
        else:
            events = [("", _google(self.server, asked))]
        named = [f"event: {name}\ndata: {json.dumps(data)}\n\n".removeprefix("event: \n") for name, data in events]
        body = "".join(named).encode()
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def _tool(names: list[str]) -> str | None:
    """The program's name for payagent's `fetch`."""
    return next((name for name in names if "payagent" in name and name.endswith("fetch")), None)


def _anthropic(model: ScriptedModel, asked: Json) -> list[Event]:
    names = [one["name"] for one in asked.get("tools", [])]
    said = [message["content"] for message in asked["messages"] if isinstance(message["content"], list)]
    told = [part for parts in said for part in parts if part["type"] == "tool_result"]
    results = [json.dumps(part["content"]) for part in told if part["tool_use_id"] != WAITED]
    tool, name = _tool(names), f"toolu_{len(results)}"
    call = model.next_call(tool, results)
    if tool is None and WAIT in names:
        tool, name, call = WAIT, WAITED, {}
    if call is None:
        block, delta, reason = {"type": "text", "text": ""}, {"type": "text_delta", "text": TEXT}, "end_turn"
    else:
        block = {"type": "tool_use", "id": name, "name": tool, "input": {}}
        delta, reason = {"type": "input_json_delta", "partial_json": json.dumps(call)}, "tool_use"
    message = {"id": "msg_1", "type": "message", "role": "assistant", "model": asked["model"], "content": []}
    message |= {"stop_reason": None, "stop_sequence": None, "usage": _USAGE}
    events: list[Json] = [
        {"type": "message_start", "message": message},
        {"type": "content_block_start", "index": 0, "content_block": block},
        {"type": "content_block_delta", "index": 0, "delta": delta},
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": {"stop_reason": reason}, "usage": _USAGE},
        {"type": "message_stop"},
    ]
    return [(event["type"], event) for event in events]


def _openai(model: ScriptedModel, asked: Json) -> list[Event]:
    names = [f"{one['name']}/{child['name']}" for one in asked["tools"] for child in one.get("tools", [])]
    results = [json.dumps(one["output"]) for one in asked["input"] if one["type"] == "function_call_output"]
    tool = _tool(names)
    call = model.next_call(tool, results)
    if call is None:
        item: Json = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": TEXT}]}
    else:
        namespace, _, name = str(tool).partition("/")
        item = {"type": "function_call", "namespace": namespace, "name": name, "arguments": json.dumps(call)}
        item["call_id"] = f"call_{len(results)}"
    done = {"id": "resp_1", "usage": {**_USAGE, "total_tokens": 2}}
    events: list[Json] = [
        {"type": "response.created", "response": {"id": "resp_1"}},
        {"type": "response.output_item.done", "item": item},
        {"type": "response.completed", "response": done},
    ]
    return [(event["type"], event) for event in events]


def _google(model: ScriptedModel, asked: Json) -> Json:
    names = [one["name"] for tools in asked.get("tools", []) for one in tools.get("functionDeclarations", [])]
    told = [part for content in asked["contents"] for part in content["parts"] if "functionResponse" in part]
    tool = _tool(names)
    call = model.next_call(tool, [json.dumps(part["functionResponse"]) for part in told])
    part: Json = {"text": TEXT} if call is None else {"functionCall": {"name": tool, "args": call}}
    content = {"role": "model", "parts": [part]}
    usage = {"promptTokenCount": 1, "candidatesTokenCount": 1, "totalTokenCount": 2}
    return {"candidates": [{"content": content, "finishReason": "STOP", "index": 0}], "usageMetadata": usage}


@contextmanager
def scripted_agent_model(calls: list[Json]) -> Iterator[ScriptedModel]:
    """A model that runs, and makes these calls of `fetch`."""
    with ScriptedModel(calls) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
