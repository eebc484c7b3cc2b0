"""The generated pages match the code, and the plots are complete."""

import re
from pathlib import Path

import pytest
from kit.pages import docs_script

DOCS = Path(__file__).resolve().parents[2] / "docs"
PLOTS = sorted((DOCS / "evidence").glob("*.svg"))
PAGES = docs_script().PAGES


@pytest.mark.parametrize("name", sorted(PAGES))
def test_each_generated_page_matches_the_code(name: str) -> None:
    assert (DOCS / "reference" / name).read_text(encoding="utf-8") == PAGES[name](), "run scripts/docs"


def test_no_text_of_a_plot_is_cut_off() -> None:
    assert PLOTS
    assert {plot.name: words for plot in PLOTS if (words := cut_off(plot))} == {}


def cut_off(plot: Path) -> list[str]:
    text = plot.read_text(encoding="utf-8")
    box = re.search(r'viewBox="0 0 [\d.]+ ([\d.]+)"', text)
    assert box is not None
    feet = re.findall(r'<text style="font-size: ([\d.]+)px[^>]* y="([\d.]+)"[^>]*>([^<]+)<', text)
    assert feet
    return [word for size, y, word in feet if float(y) + float(size) / 4 > float(box[1])]
