"""The generated pages match the code, the plots are complete, and templates are readable."""

import re
from pathlib import Path

import pytest
from kit.pages import docs_script

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
TEMPLATES = sorted((ROOT / "payagent/dashboard/templates").glob("*.html"))
PLOTS = sorted((DOCS / "evidence").glob("*.svg"))
PAGES = docs_script().PAGES


@pytest.mark.parametrize("name", sorted(PAGES))
def test_each_generated_page_matches_the_code(name: str) -> None:
    assert (DOCS / "reference" / name).read_text(encoding="utf-8") == PAGES[name](), "run scripts/docs"


def test_no_text_of_a_plot_is_cut_off() -> None:
    assert PLOTS
    assert {plot.name: words for plot in PLOTS if (words := cut_off(plot))} == {}


def test_no_line_of_a_template_is_longer_than_120_characters() -> None:
    assert TEMPLATES
    lines = [(file.name, line) for file in TEMPLATES for line in file.read_text(encoding="utf-8").splitlines()]
    assert [(name, line) for name, line in lines if len(line) > 120] == []


def cut_off(plot: Path) -> list[str]:
    text = plot.read_text(encoding="utf-8")
    box = re.search(r'viewBox="0 0 [\d.]+ ([\d.]+)"', text)
    assert box is not None
    feet = re.findall(r'<text style="font-size: ([\d.]+)px[^>]* y="([\d.]+)"[^>]*>([^<]+)<', text)
    assert feet
    return [word for size, y, word in feet if float(y) + float(size) / 4 > float(box[1])]
