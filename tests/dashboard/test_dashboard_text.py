"""How the dashboard writes amounts, times and foreign text."""

import re
from functools import partial

import pytest
from markupsafe import Markup

from payagent.core.money import LOVELACE
from payagent.dashboard.charts import spend_chart
from payagent.dashboard.fields import read_units
from payagent.dashboard.pages.activity import by_day
from payagent.dashboard.render import Renderer
from payagent.dashboard.text import amount, amount_text, clipped, number, short, visible, when

SCRIPT = "<script>alert(1)</script>\"'&"


@pytest.mark.parametrize(
    ("units", "shown"),
    [
        (0, "0.000000"),
        (1, "0.000001"),
        (-1, "-0.000001"),
        (45_000_000_000_000_000, "45_000_000_000.000000"),
    ],
)
def test_ada_is_exact_to_the_lovelace(units: int, shown: str) -> None:
    assert number(units) == number(str(units)) == shown.replace("_", "\u202f")


def test_an_amount_for_a_sentence_has_no_trailing_zeros() -> None:
    assert [amount_text(units) for units in (0, 2_000_000, 1_500_000, 1)] == [
        "0 ADA",
        "2 ADA",
        "1.5 ADA",
        "0.000001 ADA",
    ]


USDM, NAMELESS = "ab" * 28 + "5553444d", "cd" * 28 + "01"
TOKENS = {"USDM": (USDM, 6), "POINT": ("ef" * 28, 0)}


def without_tags(html: str) -> str:
    return re.sub(r"<[^>]*>", "", html)


def test_a_token_is_shown_in_its_decimals_and_every_form_is_read_back() -> None:
    shown = without_tags(amount(50_000_000_000, USDM, TOKENS))
    assert shown == "50\u202f000.000000 USDM"
    assert amount_text(5_000_000, USDM, TOKENS) == "5 USDM"
    assert amount_text(5_000, NAMELESS, TOKENS) == "5\u202f000 cdcdcdcd….01"
    for asset in (LOVELACE, USDM, "ef" * 28, NAMELESS):
        for units in (1, 50_000_000, 1_234_567_890_123):
            page = without_tags(amount(units, asset, TOKENS))
            for text in (page, amount_text(units, asset, TOKENS), page.split(" ")[0]):
                assert read_units(text, asset, TOKENS) == units, text


def test_amounts_in_texts_of_the_record_are_shown_in_decimals() -> None:
    page = Renderer(tokens=TOKENS).environment.from_string("{{ text | readable }} {{ text | clipped }}")
    detail = f"per_day leaves 5000000 units of {USDM}"
    assert page.render(text=detail) == "per_day leaves 5 USDM per_day leaves 5 USDM"
    assert "1 payment " in Renderer().environment.from_string("{{ 1 | counted('payment') }} ").render()


def test_a_template_escapes_foreign_text_and_shows_hidden_characters() -> None:
    template = Renderer().environment.from_string("<b title='{{ text }}'>{{ text }}</b>")
    shown = template.render(text=f"{SCRIPT}\N{RIGHT-TO-LEFT OVERRIDE}\a\N{ZERO WIDTH SPACE}")
    assert "<script>" not in shown
    assert "\N{RIGHT-TO-LEFT OVERRIDE}" not in shown
    for code_point in ("U+202E", "U+0007", "U+200B"):
        assert shown.count(code_point) == 2
    assert shown.count("'") == 2, "the attribute ends where the template ends it"


@pytest.mark.parametrize("write", [clipped, short, partial(amount, 5)])
def test_every_filter_escapes(write: object) -> None:
    shown = write(f"{SCRIPT}{'x' * 400}")  # type: ignore[operator]
    assert isinstance(shown, Markup)
    assert "<script>" not in shown


def test_a_text_of_10_000_characters_is_cut_and_the_rest_is_behind_it() -> None:
    shown = clipped("x" * 10_000)
    assert shown.count("x") == 10_000
    assert len(shown.partition("</summary>")[0]) < 400


def test_other_values_stay_as_they_are() -> None:
    assert visible(5) == 5
    assert visible("Zürich, 2 €\n") == "Zürich, 2 €\n"


def test_a_time_is_shown_in_utc() -> None:
    assert when("2026-11-28T23:31:09+02:00", "second") == Markup(
        '<time datetime="2026-11-28T23:31:09+02:00">28 Nov 21:31:09</time>'
    )


@pytest.mark.parametrize(
    ("difference", "unit", "shown"),
    [
        (None, "lovelace", ""),
        ("0", "lovelace", ""),
        ("-1500000", "lovelace", "1.5 ADA less"),
        ("1", "lovelace", "0.000001 ADA more"),
        ("-3", "calls", "3 calls less"),
    ],
)
def test_a_merchant_that_agrees_on_a_balance_is_not_said_to_differ(
    difference: str | None, unit: str, shown: str
) -> None:
    parts = Renderer(tokens={}).environment.get_template("parts.html").module
    assert parts.difference({"difference": difference, "unit": unit}) == shown  # type: ignore[attr-defined]


def test_the_chart_takes_no_merchants_name_for_all_others_or_for_transfers() -> None:
    merchants = ["others", "transfers", "a", "b", "c", "d"]
    spent: dict[tuple[str, str | None], int] = {("2026-11-28", name): 10 for name in merchants}
    chart = spend_chart(spent | {("2026-11-28", None): 100}, ["2026-11-28"])
    assert chart.series == (
        ("Transfers", 100),
        ("others", 10),
        ("transfers", 10),
        ("a", 10),
        ("All others", 30),
    )
    assert chart.total == 160


@pytest.mark.parametrize(
    ("via", "way"),
    [
        ("telegram", "by Telegram"),
        ("pigeon", "pigeon"),
        (None, "with its token"),
        ("clock", "because the time was over"),
    ],
)
def test_the_activity_says_each_way_of_a_decision(via: str | None, way: str) -> None:
    entry = {"at": "2026-11-28T10:00:00Z", "event": "deny", "by": "ann", "app": "bot", "payment": "pay_1"}
    ((_, (line,)),) = by_day([entry | {"detail": {"via": via}}])
    assert line["way"] == way
