"""log: one JSON line per event on stderr, or coloured text on a terminal, with every known secret cut out.

May import: structlog and the standard library's logging, which other packages use. Never: decides what is
logged. Event names are dotted (`payment.submitted`); ids are bound with structlog.contextvars. What an outside
party can cause is never logged at error.
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
"""How long a log that takes nothing is waited for, in all."""

PATIENCE_BACK = 0.05
"""Which part of the time that goes by is added to that again: a log that is always slow takes no more of it."""

_TALKATIVE = ("httpx", "httpcore")  # they tell of every call at info
SECRET_LENGTH_MIN = 8  # a shorter value would cut innocent words out of every line


class Redactor:
    """Cuts registered secrets out of log events by value, wherever they turn up and however they are nested.

    A secret is known as text, and as its bytes in hex and base64. It is held to be compared with, so its repr
    is empty.
    """

    def __init__(self) -> None:
        self._forms: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return "Redactor()"

    def register(self, secret: str | bytes) -> None:
        """From now on cut this out. Raises ValueError for one of less than 8 characters or bytes."""
        if len(secret) < SECRET_LENGTH_MIN:
            raise ValueError(f"a secret of less than {SECRET_LENGTH_MIN} characters cannot be told from words")
        raw = secret.encode() if isinstance(secret, str) else secret
        forms = {raw.hex(), raw.hex().upper(), base64.b64encode(raw).decode().rstrip("=")}
        forms.add(base64.urlsafe_b64encode(raw).decode().rstrip("="))
        forms.add(raw.decode(errors="backslashreplace") if isinstance(secret, bytes) else secret)
        # the longest first: a secret that contains another is cut as a whole
        self._forms = tuple(sorted({*self._forms, *forms}, key=len, reverse=True))

    def text(self, value: str) -> str:
        """The text without any registered secret."""
        for form in self._forms:
            value = value.replace(form, REDACTED)
        return value

    def value(self, value: object) -> Any:
        """Any value as plain data without any registered secret; what is not plain becomes its repr first."""
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
        """As the last structlog processor before the renderer."""
        return {self.text(key): self.value(item) for key, item in event.items()}


class _Lossy:
    """A stream that loses what it cannot write: a full disk under the log, a reader that is gone or stands still.

    A line stands between two steps of a payment, and must not keep the second from being taken. A reader that
    stands still is waited for a little; when it reads again, it is told how many lines it `missed`.
    """

    def __init__(self, stream: TextIO, missed: Callable[[int], str]) -> None:
        self._stream = stream
        self._missed = missed
        self._terminal = _own_handle(stream)
        self._patience_s = READER_PATIENCE_S
        self._waited_at_s = 0.0
        self._lost = 0
        self._is_cut = False
        self._door = threading.RLock()  # what is thrown away meanwhile may log, on the same thread

    def write(self, text: str) -> int:
        with self._door, suppress(OSError, ValueError):  # ValueError: it is closed
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
        """The descriptor under the stream, if there is one. ValueError for a stream that is closed."""
        if self._terminal is not None:
            return self._terminal
        try:
            return self._stream.fileno()
        except UnsupportedOperation:
            return None

    def _is_written(self, handle: int, text: str) -> bool:
        """Whether all of it was. Of a pipe or a socket that has room, PIPE_BUF bytes keep nobody waiting."""
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
        """How much of it was."""
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
    """A descriptor of our own for the terminal under a stream, with which nobody waits: a terminal may take a part
    of a line, and keep whoever writes it waiting for the rest. None where there is no terminal.
    """
    try:
        return os.open(os.ttyname(stream.fileno()), os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except (OSError, ValueError):
        return None


class _Repeats(logging.Filter):
    """Lets what a library says again and again through once in a while, with `left_out`: how often it was not.

    The same is what begins with the same line: what follows names the socket or the task.
    """

    def __init__(self) -> None:
        super().__init__()
        self._told: dict[tuple[str, int, str], tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        key = (record.name, record.levelno, str(record.msg).partition("\n")[0])
        told_s, left_out = self._told.get(key, (float("-inf"), 0))
        if 0 <= record.created - told_s < REPEATED_EVERY_S:
            self._told[key] = (told_s, left_out + 1)
            return False
        if len(self._told) >= REPEATED_MAX:
            self._told.clear()
        self._told[key] = (record.created, 0)
        if left_out:
            record.left_out = left_out
        return True


def configure_logging(stream: TextIO, redactor: Redactor, level: str = "info") -> None:
    """Send structlog's events and the standard library's records to `stream`, through the redactor."""
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
    ]
    # Tracebacks are plain text: the pretty ones show local variables, and so keys.
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
    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(logging.WARNING)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())


def _line(processors: Iterable[Processor], event: EventDict) -> str:
    """A warning as structlog would write it; for who is called by it, and so cannot call it."""
    told: Any = event
    for process in processors:
        told = process(None, "warning", told)
    return f"{told}\n"
