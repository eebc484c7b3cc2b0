"""Renders the templates, and serves the stylesheet and the script under names with their hashes.

Never: renders text of a merchant as HTML.
"""

from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.responses import Response

from payagent.core.history import decider, decision_in_words
from payagent.core.money import NO_TOKENS, counted, for_people, round_of_limit
from payagent.core.policy import limit_in_words
from payagent.dashboard import text
from payagent.dashboard.fields import fix_on_page

_FOLDER = Path(__file__).parent
STYLESHEET = (_FOLDER / "static" / "payagent.css").read_text()
_TYPES = {".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8", ".svg": "image/svg+xml"}


def _assets() -> dict[str, tuple[str, bytes, str]]:
    """Address, bytes and media type of each file, by its name."""
    found = {}
    for file in sorted((_FOLDER / "static").iterdir()):
        raw = file.read_bytes()
        address = f"/ui/static/{file.stem}.{sha256(raw).hexdigest()[:12]}{file.suffix}"
        found[file.name] = (address, raw, _TYPES[file.suffix])
    return found


class Renderer:
    """The templates and the assets. `facts` are the same on every page, such as the network."""

    def __init__(self, **facts: Any) -> None:
        self.facts, tokens = facts, facts.get("tokens", NO_TOKENS)
        assets = _assets()
        self._by_address = {address: (raw, kind) for address, raw, kind in assets.values()}
        self.environment = Environment(
            loader=FileSystemLoader(_FOLDER / "templates"),
            autoescape=True,
            undefined=StrictUndefined,
            finalize=text.visible,
            trim_blocks=True,
            lstrip_blocks=True,
            auto_reload=False,
        )
        self.environment.globals |= facts | {"asset": {name: address for name, (address, _, _) in assets.items()}}
        self.environment.filters |= {
            "amount": text.amount,
            "amount_text": text.amount_text,
            "asset_name": text.asset_name,
            "when": text.when,
            "short": text.short,
            "clipped": partial(text.clipped, tokens=tokens),
            "number": text.number,
            "readable": partial(for_people, tokens=tokens),
            "counted": counted,
            "rounded": partial(round_of_limit, tokens=tokens),
            "fix_on_page": fix_on_page,
            "chip": text.chip,
            "paid": text.paid,
            "leaves": text.leaves,
            "decider": decider,
            "decision_in_words": decision_in_words,
            "limit_in_words": limit_in_words,
        }

    def html(self, template: str, **values: object) -> str:
        return self.environment.get_template(template).render(values)

    def static(self, address: str) -> Response | None:
        """A file of ours. Its name changes with its content, so a browser may keep it."""
        if address not in self._by_address:
            return None
        raw, kind = self._by_address[address]
        return Response(raw, 200, {"cache-control": "public, max-age=31536000, immutable"}, kind)
