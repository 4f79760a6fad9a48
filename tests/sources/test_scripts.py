"""Superscripts and subscripts on the line: numbers stay apart, and the result is what people type."""

import pytest

from meditron.sources.scripts import END, SUB, SUP, render_sup_and_sub_marks, subscript, superscript


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        *[("9", "⁹"), ("-3", "⁻³"), ("−1", "⁻¹"), ("–12", "⁻¹²"), ("- 1", "⁻¹"), ("2+", "²⁺"), ("n", "ⁿ")],
        *[("n-1", "ⁿ⁻¹"), ("99m", "⁹⁹ᵐ"), ("+", "⁺"), ("-/-", "⁻/⁻"), ("•-", "•⁻"), ("(2)", "⁽²⁾")],
        *[("st", "st"), ("nd", "nd"), ("rd", "rd"), ("th", "th"), ("TM", "™"), ("®", "®"), ("o", "°")],
        *[("*", "*"), ("†", "†"), ("", ""), ("  ", ""), ("1,2", "¹,²"), ("1, 3-5", "¹, ³⁻⁵"), ("²", "²")],
        *[("low", "^low"), ("G93A", "^G93A"), ("in", "^in"), ("T", "^T"), ("fl/fl", "^(fl/fl)")],
        *[("1/2", "^(1/2)"), ("0.5", "^(0.5)"), ("0,5", "^(0,5)"), ("1 2", "^(1 2)"), ("2a", "^(2a)")],
    ],
)
def test_superscripts(text: str, expected: str) -> None:
    assert superscript(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        *[("2", "₂"), ("2.5", "₂.₅"), ("1/2", "₁/₂"), ("0-24", "₀₋₂₄"), ("2-x", "₂₋ₓ"), ("x", "ₓ")],
        *[("max", "_max"), ("m", "_m"), ("2max", "₂max"), ("1c", "₁c"), ("2A", "₂A"), ("in", "_in")],
        *[("i,j", "_(i,j)"), ("0-24h", "_(0-24h)"), ("κ", "_κ"), (",", ","), ("", ""), ("1 2", "_(1 2)")],
    ],
)
def test_subscripts(text: str, expected: str) -> None:
    assert subscript(text) == expected


def test_a_script_before_a_word_gets_parentheses() -> None:
    text = f"CD44{SUP}low{END}CD62L{SUP}high{END} x{SUP}a{END}{SUB}2{END} V{SUB} max {END}of 10{SUP}9{END}7"
    assert render_sup_and_sub_marks(text) == "CD44^(low)CD62L^high x^(a)₂ V _max of 10⁹7"


def test_nested_scripts() -> None:
    assert render_sup_and_sub_marks(f"e{SUP}-x{SUB}2{END}{END} {SUP}{SUP}{END}{END}") == "e^(-x₂) "


def test_long_scripts_take_linear_time_and_fill_no_cache() -> None:
    text = "1a" * 500_000
    assert superscript(text) == f"^({text})"
    assert subscript(text) == f"_({text})"
    nested = f"{SUP}a" * 200 + END * 200
    assert render_sup_and_sub_marks(nested).count("a") == 200
