"""The page: what a report says stands there, drawn to scale, and no text can break it."""

import re
import xml.dom.minidom
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from evomerge.citations import entries
from evomerge.report.html import page, write_html
from tests.report.pages import full, small


class Reader(HTMLParser):
    """Finds what is not closed, and what a page would load."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loads: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.loads += [found[name] or "" for name in ("src", "data") if name in found]
        self.loads += [found["href"] or ""] if "href" in found and tag != "a" else []
        if tag not in ("meta", "col", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.mark.parametrize("parts", [small(), full(), full(("a", "b")), full(("a",), layers=80)])
def test_it_is_well_formed_and_loads_nothing(parts: Any) -> None:
    text = page("s<1>", *parts)
    reader = Reader()
    reader.feed(text)
    assert reader.open == []
    assert reader.loads == []
    assert "s&lt;1&gt;" in text
    assert text.count("<script>") == 1  # the page's own
    assert "@import" not in text
    assert "url(" not in text.split("</style>")[0]
    drawings = re.findall(r"<svg.*?</svg>", re.sub(r"<svg x=.*?</svg>", "", text), re.DOTALL)
    assert len(drawings) >= 3
    for drawing in drawings:
        xml.dom.minidom.parseString(drawing)


def test_a_section_stands_there_where_the_report_has_it() -> None:
    every = ["heldout", "tasks", "front", "winner", "search", "trust", "items", "use", "repeat"]
    assert re.findall(r'<section id="(\w+)"', page("s", *full())) == every
    assert re.findall(r'<section id="(\w+)"', page("s", *small())) == ["heldout", "tasks", "search"]
    assert re.findall(r'href="#(\w+)"', page("s", *full())) == every


def test_the_headline_is_one_sentence() -> None:
    def lead(parts: Any) -> str:
        return re.findall(r'class="lead">(.*?)</p>', page("s", *parts))[0]

    assert lead(full()) == "The winner beats the best baseline."
    plain = lead(small()).replace("\u00a0", " ")
    assert plain.startswith("The winner reaches 81.2 % [76.2, 86.2] of the best experts’ accuracy")
    assert plain.endswith("50.0 % [45.0, 55.0].")


def test_every_split_of_every_row_is_in_the_table() -> None:
    table = page("s", *small()).split("Table of all splits")[1].split("</table>")[0]
    assert table.count("0.812") == 3
    assert "0.762 – 0.863" in table
    assert table.count("<tr") == 4


def test_intervals_are_drawn_to_scale() -> None:
    drawing = page("s", *small()).split('<ul class="lanes">')[1].split("</ul>")[0]
    x = [float(one) for one in re.findall(r'<circle [^>]*cx="([\d.]+)%', drawing)]
    assert (x[0] - x[1]) / (x[2] - x[1]) == pytest.approx((0.8125 - 0.5) / (0.875 - 0.5), abs=1e-3)
    width = [float(b) - float(a) for a, b in re.findall(r'x1="([\d.]+)%" x2="([\d.]+)%" y1="50%"',
                                                        drawing)]  # fmt: skip
    assert width[0] / (x[2] - x[1]) == pytest.approx(0.1 / 0.375, abs=1e-3)


def test_the_course_marks_what_became_of_the_trials() -> None:
    text = page("s", *full())
    course = text.split('<section id="search">')[1].split("<h3")[0]
    plot = course.split('class="plot')[1].split("</div><ul")[0].split('<ul class="key"')[0]
    assert plot.count('<circle class="dot') == 58  # of 60: one has failed, one is below the scale
    assert plot.count('class="failed"') == 1
    assert plot.count('class="below"') == 1
    assert plot.count('class="dot early"') == 1
    assert plot.count('class="stage"') == 1
    assert plot.count('class="level') == 3  # the base is below the scale
    assert "stopped after 12 items" in plot
    assert "ended after 59 of 60 trials" in course
    assert "No trial succeeded." in page("s", *small())


def test_the_front_is_a_table_best_first_and_a_drawing() -> None:
    for tasks, drawn in (
        (("a", "b"), "a to the right, b upwards"),
        (("a", "b", "c"), "a line for"),
    ):
        text = page("s", *full(tasks)).split('<section id="front">')[1].split("</section>")[0]
        assert drawn in text
        assert re.findall(r">trial (\d+)( \*)?</th>", text) == [("3", ""), ("7", " *"), ("9", "")]
        assert '<tr class="winner"><th scope="row">trial 7 *</th><td>0.570 <small>0.550' in text


def test_items_are_shown_as_they_are() -> None:
    items = page("s", *full()).split('<section id="items">')[1].split("</section>")[0]
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in items
    assert "{{ c }}" in items
    assert "winner right, math wrong" in items
    assert "winner wrong, math 50\u00a0% right" in items
    assert "→ 42" in items


def test_it_says_how_far_to_trust_it() -> None:
    text = page("s", *full()).split('<section id="trust">')[1].split("</section>")[0]
    assert "is +3.0 points [1.0, 5.0]: that is what choosing" in text
    assert "Items rank the trials." in text
    assert "<td>0.100</td><td>0.200</td><td>0.300</td>" in text


def test_what_is_needed_to_repeat_it() -> None:
    text = page("s", *full())
    use, repeat = text.split('<section id="use">')[1].split('<section id="repeat">')
    assert "mergekit-yaml recipe.yaml" in use
    assert "mergekit, which ignores seed and gives another model:" in use
    assert entries()["yadav2023ties"].splitlines()[0] in use
    assert entries()["hansen2016cma"].splitlines()[0] in use
    for part in ("seed: 3", "torch 2", "evomerge 0.0.0", "beef", "a1", "f00d", "cma_es, 3"):
        assert part in repeat


def test_the_shares_of_holes_are_widths() -> None:
    text = page("s", *full()).split('id="holes"')[1].split("</ul>")[0]
    widths = re.findall(r'width="([\d.]+)%"', text)
    assert len(widths) == 12
    assert widths[:3] == ["100.0", "50.0", "33.33"]
    assert "foresees 62\u00a0% of the variance" in text


def test_it_is_written_whole(tmp_path: Path) -> None:
    write_html(tmp_path / "report.html", "s", *small())
    assert (tmp_path / "report.html").read_text() == page("s", *small())
