"""`scripts/docs --site` builds all pages, without a warning and without another host.

Only the long run builds all of them. The sample checks the sources, and the build with a page of its own.
"""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from kit.effort import long_only
from kit.pages import docs_script

ROOT = Path(__file__).resolve().parents[2]
KINDS = ("Tutorial", "How-to", "Reference", "Explanation", "Decisions")
LOADS = re.compile(r"""<(?:script|img)[^>]* src="https?:|<link[^>]* href="https?:|url\(["']?https?:""")
PAGES = [path.relative_to(ROOT).with_suffix(".html") for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"))]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site") / "html"
    command = [sys.executable, ROOT / "scripts/docs", "--site", folder]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    return folder


@long_only
def test_every_page_is_on_the_site_and_in_its_navigation(site: Path) -> None:
    linked = re.findall(r'class="reference internal" href="([^"#]+)"', (site / "index.html").read_text())
    assert [page for page in PAGES if not (site / page).exists()] == []
    assert {str(page) for page in PAGES} - {*linked, "README.html"} == set()


@long_only
def test_the_navigation_has_a_section_for_each_kind_of_page(site: Path) -> None:
    captions = re.findall(r'<span class="caption-text">([^<]+)</span>', (site / "index.html").read_text())
    for kind in KINDS:
        assert [caption for caption in captions if caption.startswith(kind)], kind


@long_only
def test_a_page_loads_nothing_from_another_host(site: Path) -> None:
    files = [path for path in site.rglob("*") if path.suffix in (".html", ".css", ".svg")]
    assert len(files) > len(PAGES)
    assert [path for path in files if LOADS.search(path.read_text())] == []


@long_only
def test_every_image_of_every_page_is_there(site: Path) -> None:
    shown = {
        (page, source)
        for page in site.rglob("*.html")
        for source in re.findall(r'\b(?:src|srcset)="([^"#?]+)', page.read_text())
        if not source.startswith("data:")
    }
    assert len(shown) > len(PAGES)
    assert [(str(page), source) for page, source in shown if not (page.parent / source).is_file()] == []


@long_only
def test_the_diagrams_are_drawn(site: Path) -> None:
    for name in ("ARCHITECTURE", "docs/reference/payment-machine"):
        page = (site / f"{name}.html").read_text()
        (image, *_) = re.findall(r'<img alt="Diagram" src="([^"]+)"', page)
        assert "background-color: white" in (site / name).parent.joinpath(image).read_text()
        assert "sequenceDiagram" not in page
        assert "stateDiagram" not in page


@long_only
def test_every_link_of_llms_txt_leads_to_a_page_of_the_site(site: Path) -> None:
    links = re.findall(r"\]\(([^)]+)\)", (site / "llms.txt").read_text())
    assert len(links) > 10
    assert [link for link in links if not (site / link).exists()] == []


@long_only
def test_the_search_index_knows_the_words_of_the_pages(site: Path) -> None:
    index = (site / "searchindex.js").read_text()
    assert '"docs/how-to/rotate-tokens"' in index
    assert '"passphras"' in index


def test_every_page_is_in_the_navigation_which_has_a_section_for_each_kind() -> None:
    sections = docs_script().navigation()
    listed = [page for pages in sections.values() for page in pages]
    assert sorted([*listed, "README"]) == sorted(str(page.with_suffix("")) for page in PAGES)
    assert [kind for kind in KINDS if not [caption for caption in sections if caption.startswith(kind)]] == []


def test_no_page_shows_an_image_of_another_host() -> None:
    shows = re.compile(rf"!\[[^]]*\]\(https?:|{LOADS.pattern}")
    assert [page for page in PAGES if shows.search((ROOT / page).with_suffix(".md").read_text())] == []


def test_a_diagram_is_drawn(tmp_path: Path) -> None:
    page = docs_script().with_drawn_diagrams("# A\n\n```mermaid\nsequenceDiagram\n  A->>B: pay\n```\n", tmp_path)
    found = re.fullmatch(r"# A\n\n!\[Diagram\]\((\w+\.svg)\)\n", page)
    assert found is not None
    assert "background-color: white" in (tmp_path / found[1]).read_text()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::PendingDeprecationWarning")
def test_links_that_lead_nowhere_fail_the_build(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pages = tmp_path / "pages"
    pages.mkdir()
    (pages / "README.md").write_text("# A page\n\n[A page](no-page.md) and [a heading](README.md#no-heading).\n")
    assert docs_script().build(pages, tmp_path / "html") is False
    told = capsys.readouterr().err
    assert "no-page.md" in told
    assert "no-heading" in told
    files = [path for path in (tmp_path / "html").rglob("*") if path.suffix in (".html", ".css", ".svg")]
    assert [path for path in files if LOADS.search(path.read_text())] == []
    assert '"head":' in (tmp_path / "html/searchindex.js").read_text()
