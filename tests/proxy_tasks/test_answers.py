"""Numbers and words in answers, against cases by hand."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evomerge.proxy_tasks._answers import extracted, last_number, normalized, words


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("1,234.0", 1234),
        ("1234", 1234),
        ("-3", -3),
        ("\N{MINUS SIGN}3", -3),
        ("-$3.50", Fraction(-7, 2)),
        ("$1,234,567", 1234567),
        (".5", Fraction(1, 2)),
        ("50%", 50),
        ("1e-3", Fraction(1, 1000)),
        ("2E2", 200),
        ("3/4", Fraction(3, 4)),
        ("007", 7),
        ("so 4 and 5 make 9.", 9),
        ("(3,5)", 5),
        ("10-15", 15),
        ("x2 is 7", 7),
        ("7 is x2", 7),
        ("答案是42。", 42),
        (r"\boxed{42}", 42),
        ("1,2345", 2345),
        ("10,20", 20),
        ("1'000", 1000),
        ("1\N{RIGHT SINGLE QUOTATION MARK}000'000", 1000000),
        ("5'10", 10),
        ("Rs.500", 500),
        ("No.5", 5),
        ("is...42", 42),
        ("1.2.3", Fraction(6, 5)),
        ("_18_", 18),
        ("__18__", 18),
        ("5 is x_1", 5),
        ("5,75", 75),
        ("1 000", 0),
        ("3 1/2", Fraction(1, 2)),
        ("5km", 5),
        ("0", 0),
    ],
)
def test_the_last_number(text: str, number: Fraction | int) -> None:
    assert last_number(text) == number


@pytest.mark.parametrize("text", ["", "none", "1/0", "x2", "x_2", "v1.5", "-", ".", "9" * 5000])
def test_no_number(text: str) -> None:
    assert last_number(text) is None


def test_a_huge_exponent_takes_no_time_and_no_memory() -> None:
    assert last_number("1e999") == 10**999
    assert last_number("1e999999999999") == 10**999  # of three digits at most


@given(st.integers(), st.text(alphabet="abc ,.", max_size=5))
def test_integers_are_read_with_and_without_commas(value: int, before: str) -> None:
    for spelt in (str(value), f"{value:,}", f"{value:,}.00", f" {value}. "):
        assert last_number(f"{before} {spelt}") == value


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("New York", "new york"),
        ("  new\n YORK. ", "new york"),
        ("Don't!", "dont"),
        ("Straße", "strasse"),
        ("«Да», — он", "да он"),
        ("a+b = c", "a+b = c"),
        ("?!", ""),
    ],
)
def test_words(text: str, expected: str) -> None:
    assert words(text) == expected
    assert normalized(text, "text") == expected


@given(st.text(), st.text())
def test_what_a_text_begins_with_begins_its_words(first: str, second: str) -> None:
    assert words(first + second).startswith(words(first))


def test_extraction() -> None:
    assert extracted(" 42 ", None) == "42"
    assert extracted("4, 2", r"\d") == "2"
    assert extracted("answer 4 answer 2 no", r"answer (\d)") == "2"
    assert extracted("none", r"\d") is None
    assert extracted("4", r"4(\d)?") == ""
