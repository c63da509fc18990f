import math

import pytest

from stream2llm_rag.cli.chart import Chart, Curve, duration

LINE = Curve("line", "o", "", lambda place: place)
FLAT = Curve("flat", "-", "", lambda place: 64.0)


def drawn(chart):
    """The plot without its labels, from the top down."""
    return [line.plain[10:] for line in chart.lines()][: chart.num_rows]


def test_proportion_is_a_diagonal_and_curves_cross_where_they_are_equal():
    plot = drawn(Chart([LINE, FLAT], 8, 512, duration, num_columns=31, num_rows=31))
    assert [row.index("o") for row in plot] == list(reversed(range(31)))
    middle = plot[15]
    assert middle == "-" * 15 + "o" + "-" * 15


def test_a_line_stands_where_it_is_asked_for():
    plot = drawn(Chart([LINE], 8, 512, duration, line_at=64, num_columns=31, num_rows=31))
    assert {row[15] for row in plot} == {"┊", "o"}
    assert not any("┊" in row for row in drawn(Chart([LINE], 8, 512, duration, line_at=7)))


def test_what_is_drawn_is_named_and_both_axes_are_labelled():
    lines = [line.plain for line in Chart([LINE, FLAT], 8, 512, duration).lines()]
    assert "o line" in lines[-1]
    assert "- flat" in lines[-1]
    assert lines[-2].split() == ["8", "16", "32", "64", "128", "256", "512"]
    assert lines[0].startswith("   517 s │")


@pytest.mark.parametrize("height", [0.0, 1e-30, math.pi])
def test_a_curve_that_is_flat_or_zero_is_drawn_all_the_same(height):
    plot = drawn(Chart([Curve("flat", "o", "", lambda _: height)], 1, 2, duration))
    assert sum(row.count("o") for row in plot) == 64


@pytest.mark.parametrize(
    ("seconds", "words"), [(0, "0 ns"), (1.234e-9, "1.23 ns"), (9.9999e-4, "1 ms"), (0.25, "250 ms"), (12, "12 s")]
)
def test_a_duration_has_a_unit_that_suits_it(seconds, words):
    assert duration(seconds) == words
