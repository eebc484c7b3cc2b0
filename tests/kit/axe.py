"""axe-core on a page of the dashboard: what it finds that is serious or critical."""

import json
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page

SCRIPT = Path(__file__).parents[1] / "axe/node_modules/axe-core/axe.min.js"

needs_axe = pytest.mark.skipif(not SCRIPT.is_file(), reason="axe-core is missing (npm ci in tests/axe)")

_RUN = "axe.run(document, {resultTypes: ['violations']}).then((told) => JSON.stringify(told.violations))"


def serious(page: Page) -> list[str]:
    """Each serious or critical finding: its rule, and the elements."""
    # colours that fade: until each has ended, or its part was replaced by a fresh one
    page.evaluate("Promise.allSettled(document.getAnimations().map((one) => one.finished))")
    if not page.evaluate("'axe' in window"):
        page.evaluate(SCRIPT.read_text())  # by the debugger, which no policy of the page concerns
    found: list[dict[str, Any]] = json.loads(page.evaluate(_RUN))
    return [
        f"{one['id']} ({one['impact']}): {', '.join(node['html'][:160] for node in one['nodes'])}"
        for one in found
        if one["impact"] in ("serious", "critical")
    ]
