"""The official x402 SDK's async client as its next release has it: payloads are made in a worker thread."""

import asyncio
from collections.abc import Callable, Generator
from typing import Any

from x402 import x402Client


class PayloadsInThread(x402Client):
    """Hooks run in the caller's task. The steps between them, which call the scheme, run in a thread."""

    async def _run_payment_creation_generator(self, gen: Generator[Any, Any, Any]) -> Any:
        is_done, step = await asyncio.to_thread(_next, gen.send, None)
        while not is_done:
            _, hook, context = step
            try:
                result = await self._execute_hook(hook, context)
            except Exception as error:  # noqa: BLE001  the SDK hands it to the failure hooks
                is_done, step = await asyncio.to_thread(_next, gen.throw, error)
            else:
                is_done, step = await asyncio.to_thread(_next, gen.send, result)
        return step


def _next(resume: Callable[[Any], Any], value: Any) -> tuple[bool, Any]:
    """Return (False, what the generator yields) or (True, what it returns). A future cannot hold StopIteration."""
    try:
        return False, resume(value)
    except StopIteration as end:
        return True, end.value
