"""`scripts/docs --site` builds all pages, without a warning and without another host."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from kit.pages import docs_script

ROOT = Path(__file__).resolve().parents[2]
PAGES = [path.relative_to(ROOT).with_suffix(".html") for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"))]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site") / "html"
    command = [sys.executable, ROOT / "scripts/docs", "--site", folder]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    return folder


def test_every_page_is_on_the_site_and_in_its_navigation(site: Path) -> None:
    linked = re.findall(r'class="reference internal" href="([^"#]+)"', (site / "index.html").read_text())
    assert [page for page in PAGES if not (site / page).exists()] == []
    assert {str(page) for page in PAGES} - {*linked, "README.html"} == set()


def test_the_navigation_has_a_section_for_each_kind_of_page(site: Path) -> None:
    captions = re.findall(r'<span class="caption-text">([^<]+)</span>', (site / "index.html").read_text())
    for kind in ("Tutorial", "How-to", "Reference", "Explanation", "Decisions"):
        assert [caption for caption in captions if caption.startswith(kind)], kind


def test_a_page_loads_nothing_from_another_host(site: Path) -> None:
    loads = re.compile(r"""<(?:script|img)[^>]* src="https?:|<link[^>]* href="https?:|url\(["']?https?:""")
    files = [path for path in site.rglob("*") if path.suffix in (".html", ".css", ".svg")]
    assert len(files) > len(PAGES)
    assert [path for path in files if loads.search(path.read_text())] == []


def test_the_diagrams_are_drawn(site: Path) -> None:
    for name in ("ARCHITECTURE", "docs/reference/payment-machine"):
        page = (site / f"{name}.html").read_text()
        (image, *_) = re.findall(r'<img alt="Diagram" src="([^"]+)"', page)
        assert "background-color: white" in (site / name).parent.joinpath(image).read_text()
        assert "sequenceDiagram" not in page
        assert "stateDiagram" not in page


def test_every_link_of_llms_txt_leads_to_a_page_of_the_site(site: Path) -> None:
    links = re.findall(r"\]\(([^)]+)\)", (site / "llms.txt").read_text())
    assert len(links) > 10
    assert [link for link in links if not (site / link).exists()] == []


def test_the_search_index_knows_the_words_of_the_pages(site: Path) -> None:
    index = (site / "searchindex.js").read_text()
    assert '"docs/how-to/rotate-tokens"' in index
    assert '"passphras"' in index


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::PendingDeprecationWarning")
def test_links_that_lead_nowhere_fail_the_build(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pages = tmp_path / "pages"
    pages.mkdir()
    (pages / "README.md").write_text("# A page\n\n[A page](no-page.md) and [a heading](README.md#no-heading).\n")
    assert docs_script().build(pages, tmp_path / "html") is False
    told = capsys.readouterr().err
    assert "no-page.md" in told
    assert "no-heading" in told
