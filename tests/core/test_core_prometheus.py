"""The metrics page in the Prometheus text format."""

import re

from hypothesis import given
from hypothesis import strategies as st

from payagent.core.prometheus import Family, Histogram, alone, by_label, write


def test_metrics_are_written_in_the_prometheus_text_format() -> None:
    text = write(
        (
            Family("a_total", "counter", "What it counts.", by_label("code", {"x": 1, "y": 2})),
            Family("b", "gauge", "Alone.", alone(-3)),
            Family("c", "gauge", "Not known.", alone(None)),
            Family("d", "gauge", "Two labels.", (({"one": "1", "two": "2"}, 0),)),
        )
    )
    assert text == (
        "# HELP a_total What it counts.\n# TYPE a_total counter\n"
        'a_total{code="x"} 1\na_total{code="y"} 2\n'
        "# HELP b Alone.\n# TYPE b gauge\nb -3\n"
        "# HELP c Not known.\n# TYPE c gauge\n"
        '# HELP d Two labels.\n# TYPE d gauge\nd{one="1",two="2"} 0\n'
    )


def test_a_histogram_counts_durations_up_to_each_bound_and_is_written_in_seconds() -> None:
    histogram = Histogram((10, 2_500))
    for duration_ms in (-5, 10, 11, 2_500, 90_000):
        histogram.observe(duration_ms)
    text = write((Family("d_seconds", "histogram", "How long.", (({"p": "x"}, histogram),)),))
    assert text == (
        "# HELP d_seconds How long.\n# TYPE d_seconds histogram\n"
        'd_seconds_bucket{p="x",le="0.010"} 2\n'
        'd_seconds_bucket{p="x",le="2.500"} 4\n'
        'd_seconds_bucket{p="x",le="+Inf"} 5\n'
        'd_seconds_sum{p="x"} 92.521\nd_seconds_count{p="x"} 5\n'
    )


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_label_values_are_escaped(value: str) -> None:
    line = write((Family("a", "gauge", "x", by_label("l", {value: 1})),)).removeprefix(
        "# HELP a x\n# TYPE a gauge\n"
    )
    found = re.fullmatch(r'a\{l="((?:[^"\\\n]|\\["\\n])*)"\} 1\n', line)
    assert found is not None
    plain = re.sub(r"\\(.)", lambda escaped: "\n" if escaped[1] == "n" else escaped[1], found[1])
    assert plain == value
