from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openafm.scoring.answers import equal, final, number, numbers

SAME = [
    ("42", "42.0"), ("1,200", "1200"), ("0.5", "1/2"), ("50%", "1/2"), ("-3", "−3"), ("$7", "7"),
    (r"\frac{3}{4}", "0.75"),
    ("x = 5", "5"), ("Yes", "yes"), ("  a   b ", "a b"), ("1, 2, 3", "[1, 2, 3]"), ("(1, 1/2)", "1, 0.5"),
    ("x**2 - 1", "(x-1)(x+1)"), ("2x + 2", "2*(x+1)"), (r"\sqrt{8}", "2*sqrt(2)"), ("sin(x)^2 + cos(x)^2", "1"),
    ("3 + 4", "7"), ("2^10", "1024"), ("pi/2", "0.5*pi"),
]  # fmt: skip
DIFFERENT = [
    ("42", "43"), ("1/2", "1/3"), ("", ""), ("yes", "no"), ("1, 2", "2, 1"), ("1, 2", "1, 2, 3"), ("x + 1", "x + 2"),
    ("x", "y"), ("cat", "act"), ("12", "1 2"), ("5%", "5"), ("sqrt(2)", "1.41421356"),
]  # fmt: skip


@pytest.mark.parametrize(("a", "b"), SAME)
def test_the_same(a, b):
    assert equal(a, b) and equal(b, a)


@pytest.mark.parametrize(("a", "b"), DIFFERENT)
def test_not_the_same(a, b):
    assert not equal(a, b) and not equal(b, a)


@pytest.mark.parametrize(
    "hostile",
    ["__import__('os').system('touch /tmp/openafm-hacked')", "(1).__class__.__bases__", "9**9**9**9",
     "9^(9^(9^9))", "(" * 150 + "1" + ")" * 150, "x" * 10_000, "1/(1-1)", "exec(1)", "[i for i in (1,2)]", "lambda: 1",
     "(1 if 1 else 2)", "factorial(99999999)", "sqrt(sqrt(sqrt(x)))**64**64", "1e99 (", "0x(", "2**(x)", "log(0)",
     "f(1)"],
)  # fmt: skip
def test_hostile_text_is_neither_run_nor_waited_for(hostile):
    assert not equal(hostile, "7*(1)") and not equal("x+(1)", hostile)


@settings(deadline=None, max_examples=50)
@given(st.fractions(max_denominator=1000), st.fractions(max_denominator=1000))
def test_fractions_compare_exactly(a, b):
    assert equal(f"{a.numerator}/{a.denominator}", f"{b.numerator}/{b.denominator}") == (a == b)


@settings(deadline=None, max_examples=50)
@given(st.integers(-99, 99), st.integers(-99, 99), st.integers(1, 9))
def test_sums_compare_as_python_computes_them(a, b, c):
    assert equal(f"({a}) + ({b}) * {c}", str(a + b * c))
    assert not equal(f"({a}) + ({b}) * {c}", str(a + b * c + 1))


def test_parts_of_a_response():
    assert final("so we get 5. The answer is 12.") == "12"
    assert final("Of course! The answer is: yes") == final("Answer: yes") == final("the answer is : yes.") == "yes"
    assert final("the answer isn't 5") == "the answer isn't 5"
    assert final(r"thus \boxed{3/4}") == "3/4"
    assert final("work\n#### 9") == "9"
    assert numbers("from 3 to -4 and 1,000 or 2.5") == [3, -4, 1000, Fraction(5, 2)]
    assert numbers("10-3") == [10, 3]
    assert number("3/4") == Fraction(3, 4) and number("three") is None and number("1/0") is None
