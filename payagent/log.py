"""Logging: one JSON line per event on stderr, or coloured text on a terminal, without any known secret.

Event names are dotted (`payment.submitted`). Ids are bound with structlog.contextvars. Events that an outside
party can cause are never logged at error.
Never: decides what is logged.
"""

import base64
import logging
import os
import select
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from io import UnsupportedOperation
from typing import Any, TextIO, cast

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

REDACTED = "[redacted]"
REPEATED_EVERY_S = 30
REPEATED_MAX = 256
READER_PATIENCE_S = 1.0
"""The total wait in seconds for a log reader that does not read."""

PATIENCE_BACK = 0.05
"""The fraction of elapsed time that is added back to that wait: a slow log costs no more than this."""

_NOISY = ("httpx", "httpcore")  # these loggers report every request at info
SECRET_LENGTH_MIN = 8  # a shorter value could be part of ordinary words in any line


class Redactor:
    """Removes registered secrets from log events by value, wherever they are and however deeply nested.

    A secret is known as text, and as its bytes in hex and base64. The redactor holds the secrets, so its repr is
    empty.
    """

    def __init__(self) -> None:
        self._forms: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return "Redactor()"

    def register(self, secret: str | bytes) -> None:
        """Remove this secret from now on. Raises ValueError if it has less than 8 characters or bytes."""
        if len(secret) < SECRET_LENGTH_MIN:
            raise ValueError(f"a secret of less than {SECRET_LENGTH_MIN} characters could occur in ordinary text")
        raw = secret.encode() if isinstance(secret, str) else secret
        forms = {raw.hex(), raw.hex().upper(), base64.b64encode(raw).decode().rstrip("=")}
        forms.add(base64.urlsafe_b64encode(raw).decode().rstrip("="))
        forms.add(raw.decode(errors="backslashreplace") if isinstance(secret, bytes) else secret)
        # the longest first, so that a secret which contains another is removed as a whole
        self._forms = tuple(sorted({*self._forms, *forms}, key=len, reverse=True))

    def text(self, value: str) -> str:
        """Return the text without any registered secret."""
        for form in self._forms:
            value = value.replace(form, REDACTED)
        return value

    def value(self, value: object) -> Any:
        """Return the value as plain data without any registered secret. Other types become their repr first."""
        if value is None or isinstance(value, bool | int | float):
            return value
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, bytes):
            return self.text(value.decode(errors="backslashreplace"))
        if isinstance(value, Mapping):
            return {self.text(str(key)): self.value(item) for key, item in value.items()}
        if isinstance(value, list | tuple | set | frozenset):
            return [self.value(item) for item in value]
        return self.text(str(value) if isinstance(value, BaseException) else repr(value))

    def __call__(self, _logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
        """Run as the last structlog processor before the renderer."""
        return {self.text(key): self.value(item) for key, item in event.items()}


class _Lossy:
    """A stream that drops lines it cannot write: the disk is full, or the reader is gone or does not read.

    A line may be logged between two steps of a payment and must not delay the second. So the wait for a stalled
    reader is short. When it reads again, a line by `missed` says how many lines were dropped.
    """

    def __init__(self, stream: TextIO, missed: Callable[[int], str]) -> None:
        self._stream = stream
        self._missed = missed
        self._terminal = _own_handle(stream)
        self._patience_s = READER_PATIENCE_S
        self._waited_at_s = 0.0
        self._lost = 0
        self._is_cut = False
        self._lock = threading.RLock()  # an object collected meanwhile may log on this thread

    def write(self, text: str) -> int:
        with self._lock, suppress(OSError, ValueError):  # ValueError: the stream is closed
            handle = self._handle()
            if handle is None:
                self._stream.write(text)
            elif not self._is_written(handle, text):
                self._lost += 1
            elif self._lost and self._is_written(handle, self._missed(self._lost)):
                self._lost = 0
        return len(text)

    def flush(self) -> None:
        with suppress(OSError, ValueError):
            self._stream.flush()

    def _handle(self) -> int | None:
        """Return the stream's descriptor, if it has one. Raises ValueError if the stream is closed."""
        if self._terminal is not None:
            return self._terminal
        try:
            return self._stream.fileno()
        except UnsupportedOperation:
            return None

    def _is_written(self, handle: int, text: str) -> bool:
        """Write a line; whether all of it was written.

        A write of at most PIPE_BUF bytes to a pipe or socket with room does not block.
        """
        line = "\n" + text if self._is_cut else text
        data = line.encode(self._stream.encoding, self._stream.errors or "strict")
        while data:
            written = self._write(handle, data[: select.PIPE_BUF])
            if not written:
                return False
            data = data[written:]
            self._is_cut = True
        self._is_cut = False
        return True

    def _write(self, handle: int, piece: bytes) -> int:
        """Write a piece; return how many bytes were written."""
        with suppress(OSError):
            return os.write(handle, piece) if self._has_room(handle) else 0
        return 0

    def _has_room(self, handle: int) -> bool:
        ready = select.poll()
        ready.register(handle, select.POLLOUT)
        if ready.poll(0):
            return True
        began_s = time.monotonic()
        back_s = (began_s - self._waited_at_s) * PATIENCE_BACK
        self._patience_s = min(self._patience_s + back_s, READER_PATIENCE_S)
        has_room = bool(ready.poll(max(int(self._patience_s * 1000), 0)))
        self._waited_at_s = time.monotonic()
        self._patience_s -= self._waited_at_s - began_s
        return has_room


def _own_handle(stream: TextIO) -> int | None:
    """Open our own non-blocking descriptor for the terminal under a stream; None if there is no terminal.

    A terminal may accept part of a line and block the writer for the rest.
    """
    try:
        return os.open(os.ttyname(stream.fileno()), os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except (OSError, ValueError):
        return None


class _Repeats(logging.Filter):
    """Limits repeated messages of a library to one per interval, with `left_out`: how many were dropped.

    Messages are the same if their first lines are: further lines name the socket or task.
    """

    def __init__(self) -> None:
        super().__init__()
        self._last_logged: dict[tuple[str, int, str], tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        key = (record.name, record.levelno, str(record.msg).partition("\n")[0])
        logged_s, left_out = self._last_logged.get(key, (float("-inf"), 0))
        if 0 <= record.created - logged_s < REPEATED_EVERY_S:
            self._last_logged[key] = (logged_s, left_out + 1)
            return False
        if len(self._last_logged) >= REPEATED_MAX:
            self._last_logged.clear()
        self._last_logged[key] = (record.created, 0)
        if left_out:
            record.left_out = left_out
        return True


def configure_logging(stream: TextIO, redactor: Redactor, level: str = "info") -> None:
    """Send structlog events and standard library records to `stream`, through the redactor."""
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
    ]
    # Tracebacks are plain text, because the pretty ones show local variables, which may be keys.
    renderer: Processor = (
        structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
        if stream.isatty()
        else structlog.processors.JSONRenderer(ensure_ascii=False)
    )
    last: list[Processor] = [structlog.processors.format_exc_info, redactor, renderer]
    lossy = _Lossy(stream, lambda lines: _line([*shared, *last], {"event": "log.lost", "lines": lines}))
    structlog.configure(
        processors=[*shared, *last],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(cast(TextIO, lossy)),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(lossy)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.ExtraAdder()],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last],
        )
    )
    handler.addFilter(_Repeats())
    for name in _NOISY:
        logging.getLogger(name).setLevel(logging.WARNING)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())


def _line(processors: Iterable[Processor], event: EventDict) -> str:
    """Format a warning as structlog would. Its caller is used by structlog and so cannot call it."""
    result: Any = event
    for process in processors:
        result = process(None, "warning", result)
    return f"{result}\n"
