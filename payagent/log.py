"""log: one JSON line per event on stderr, or coloured text on a terminal, with every known secret cut out.

May import: structlog and the standard library's logging, which other packages use. Never: decides what is
logged. Event names are dotted (`payment.submitted`); ids are bound with structlog.contextvars. What an outside
party can cause is never logged at error.
"""

import base64
import logging
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, TextIO, cast

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

REDACTED = "[redacted]"
REPEATED_EVERY_S = 30
REPEATED_MAX = 256
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
    """A stream that loses what it cannot write: a full disk under the log, or a reader that is gone.

    A line stands between two steps of a payment, and must not keep the second from being taken.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with suppress(OSError, ValueError):  # ValueError: it is closed
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError, ValueError):
            self._stream.flush()


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
    lossy = _Lossy(stream)
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
