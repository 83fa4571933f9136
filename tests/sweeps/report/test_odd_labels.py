"""Labels of splits contain names from the table, which may be in any script and of any length."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure as Canvas

from sweeps.report.figures import style
from tests.odd_names import LISTED, names


@pytest.mark.parametrize("name", [*LISTED, r"$\frac #1$", "$x^{$", "a_b^c", "n" * 300])
def test_a_label_is_drawn_as_it_is(name: str) -> None:
    with style.house_style():
        canvas = Canvas()
        ax = canvas.subplots()
        ax.plot([1, 10], [1, 1000], label=name)
        ax.set_yscale("log")
        style.label_counts(ax.yaxis)
        ax.set_title(name)
        ax.set_xticks([1, 10], [name, "other"])
        ax.legend()
        figure = style.finish(canvas, f"density-{style.slug(name)}", "", "")
        assert [text.get_text() for text in ax.get_yticklabels() if text.get_text() in ("10", "1,000")]
    assert figure.png
    assert figure.svg


@given(st.lists(names, min_size=1, max_size=4))
def test_a_label_makes_a_short_name_of_a_file(parts: list[str]) -> None:
    slug = style.slug("+".join(parts))
    assert len(slug.encode()) <= style.SLUG_BYTES
    assert "/" not in slug


def test_long_labels_that_differ_have_different_names() -> None:
    assert style.slug("n" * 300 + "a") != style.slug("n" * 300 + "b")
