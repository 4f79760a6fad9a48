"""MathML as plain text: fractions, roots and powers are readable, numbers never fuse, nothing is doubled."""

import pytest
from lxml import etree

from meditron.sources.mathml import math_text
from meditron.sources.scripts import render_sup_and_sub_marks


@pytest.mark.parametrize(
    ("inner", "expected"),
    [
        ("<mfrac><mn>1</mn><mn>2</mn></mfrac>", "1/2"),
        ("<mn>1</mn><mfrac><mn>1</mn><mn>2</mn></mfrac>", "1 1/2"),
        (
            "<mfrac><mrow><mi>a</mi><mo>+</mo><mi>b</mi></mrow><mrow><mn>2</mn><mi>c</mi></mrow></mfrac>",
            "(a+b)/(2c)",
        ),
        (
            "<mfrac><mfenced><mrow><mi>a</mi><mo>+</mo><mi>b</mi></mrow></mfenced><mi>c</mi></mfrac>",
            "(a+b)/c",
        ),
        ("<msup><mrow><mi>R</mi></mrow> <mrow><mn>2</mn></mrow></msup>", "R²"),
        ("<msup><mrow><mi>a</mi><mo>+</mo><mi>b</mi></mrow><mn>2</mn></msup>", "(a+b)²"),
        ("<mn>10</mn><msup><mn>10</mn><mrow><mo>-</mo><mn>3</mn></mrow></msup>", "10 10⁻³"),
        ("<msub><mi>T</mi><mn>1</mn></msub><mo>=</mo><mn>1573</mn>", "T₁=1573"),
        ("<msubsup><mi>T</mi><mn>2</mn><mo>∗</mo></msubsup>", "T₂∗"),
        ("<msubsup><mi>σ</mi><mi>CC</mi><mi>ex</mi></msubsup>", "σ_(CC)^ex"),
        ("<msqrt><mi>x</mi></msqrt><mo>+</mo><msqrt><mi>x</mi><mo>+</mo><mn>1</mn></msqrt>", "√x+√(x+1)"),
        ("<mroot><mi>x</mi><mn>3</mn></mroot>", "³√x"),
        ("<mfenced open='[' close=')' separators=';'><mn>1</mn><mn>2</mn></mfenced>", "[1;2)"),
        ("<mfenced><mn>1</mn><mn>2</mn><mn>3</mn></mfenced>", "(1,2,3)"),
        ("<mfenced separators=''><mn>1</mn><mn>2</mn></mfenced>", "(1 2)"),
        ("<munderover><mo>∑</mo><mrow><mi>i</mi><mo>=</mo><mn>1</mn></mrow><mi>n</mi></munderover>", "∑ᵢ₌₁ⁿ"),
        ("<mover><mi>x</mi><mo>¯</mo></mover>", "x¯"),
        (
            "<mmultiscripts><mi>C</mi><mn>2</mn><none/><mprescripts/><none/><mn>13</mn></mmultiscripts>",
            "¹³C₂",
        ),
        (
            "<mtable><mtr><mtd><mn>1</mn></mtd><mtd><mn>2</mn></mtd></mtr><mtr><mtd><mn>3</mn></mtd></mtr></mtable>",
            "1, 2; 3",
        ),
        ("<mi>sin</mi><mo>\u2061</mo><mi>x</mi><mo>+</mo><mn>2</mn><mo>\u2062</mo><mi>y</mi>", "sin x+2y"),
        ("<mi>cos</mi><mi>x</mi>", "cos x"),
        ("<mn>2</mn><mo>\u2062</mo><mn>3</mn>", "2 3"),
        ("<mphantom><mn>9</mn></mphantom><mtext> a b </mtext><mspace/><mn>1</mn>", "a b 1"),
        (
            "<semantics><mi>V</mi><annotation encoding='application/x-tex'>V_{max}</annotation></semantics>",
            "V",
        ),
        (
            "<semantics><mrow/><annotation encoding='application/x-tex'>V_{max}</annotation></semantics>",
            "V_{max}",
        ),
    ],
)
def test_mathml(inner: str, expected: str) -> None:
    element = etree.fromstring(f'<math xmlns="http://www.w3.org/1998/Math/MathML">{inner}</math>')
    assert render_sup_and_sub_marks(math_text(element)) == expected
