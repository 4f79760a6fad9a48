"""Rendering of the MediaWiki templates that show text, such as measures and formulas, as plain text."""

import re
from collections.abc import Callable
from typing import Any

from meditron.sources.scripts import END, SUB, SUP

__all__ = ["FRACTION", "TemplateArguments", "render_template"]

FRACTION = "\x04"
"""Mark before a fraction. It later becomes a blank after a digit, so that `3{{frac|1|2}}` does not become
31/2."""


class TemplateArguments:
    """The arguments of a template, which are converted to text when they are read."""

    def __init__(self, node: Any, text: Callable[[Any], str]) -> None:  # noqa: ANN401  # no types
        self._values = {str(param.name).strip(): param.value for param in node.params}
        self._text = text

    def __getitem__(self, name: str) -> str:
        """Return an argument as text; an empty text if the template does not have it."""
        return self._text(self._values[name]).strip() if name in self._values else ""

    def first_nonempty(self, *names: str) -> str:
        """Return the first of the named arguments that is not empty."""
        return next(filter(None, map(self.__getitem__, names)), "")

    def positional_values(self) -> list[str]:
        """Return the arguments 1, 2, … up to the first missing one."""
        values: list[str] = []
        while str(len(values) + 1) in self._values:
            values.append(self[str(len(values) + 1)])
        return values


_CHARACTERS = {
    **dict.fromkeys(
        ("nbsp", "spaces", "space", "thin space", "thinsp", "hair space", "hsp", "gap", "0"), " "
    ),
    **dict.fromkeys(("figure space", "ensp", "emsp", "quad", "px2"), " "),
    **dict.fromkeys(("snd", "spaced ndash", "spaced en dash", "dash"), " – "),
    **dict.fromkeys(("spaced mdash", "spaced em dash"), " — "),
    **dict.fromkeys(("ndash", "en dash", "endash"), "–"),
    **dict.fromkeys(("mdash", "em dash", "emdash"), "—"),
    **dict.fromkeys(("middot", "·", "dot", "bullet", "•", "bull"), " · "),
    **dict.fromkeys(("br", "clear", "-", "break", "crlf", "crlf2", "pb", "paragraph break"), "\n"),
    "mm hg": "mmHg",
    **dict.fromkeys(("shy", "wbr", "zwj", "zwnj", "zwsp"), ""),
    **{"!": "|", "=": "=", "(": "{", ")": "}", "'": "'", '"': '"', "pipe": "|", "minus": "−", "times": "×"},
    **{"pi": "π", "tau": "τ", "infin": "∞", "deg": "°", "prime": "′", "ell": "ℓ", "hbar": "ħ"},
    **{"angstrom": "Å", "micro": "µ", "beta": "β", "alpha": "α", "gamma": "γ", "delta": "δ", "mu": "µ"},
}
# Templates that show one argument → names of this argument; the first that is not empty is shown.
_SHOWN = {
    """
    nowrap|nobr|nobreak|nwr|avoid wrap|small|smaller|big|larger|large|smallcaps|sc|smcaps|abbr|em|strong|bold
    |italic|no italics|noitalic|mono|code|samp|kbd|var|math|mvar|tmath|visible anchor|vanchor|not a typo|sic
    |proper name|as written|center|left|right|underline|overline|strike|tooltip|nts|formatnum|plainlist
    |flatlist|term|defn|block indent|indent|poem|nihongo|text|tq|nowr|nobold|comment|abréviation|abrev
    """: ("1", "text"),
    """
    quote|quote box|quotebox|cquote|blockquote|bquote|quotation|poemquote|poem quote|rquote|zitat|cita
    |citation bloc|citazione|quoteblock|cytat|citaat
    """: ("1", "text", "quote", "content", "texto", "texte", "testo"),
    "lang": ("2", "text", "texte"),
    "w": ("2", "1"),
    "le|link-en|link-fr|link-de": ("1",),
    "transl|transliteration|font color": ("3", "2", "text"),
    "color|verse translation": ("2", "1"),
    "ill|interlanguage link|link-interwiki": ("lt", "1"),
}
_FIRST = {name.strip(): keys for names, keys in _SHOWN.items() for name in names.split("|")}
_LISTS = frozenset(
    {"hlist", "ubl", "unbulleted list", "bulleted list", "ordered list", "blist", "olist", "cslist"}
)
_MONEY = {"us$": "US$", "usd": "US$", "a$": "A$", "gbp": "£", "£": "£", "eur": "€", "€": "€", "inr": "₹"}
_RANGES = {
    **{"-": "–", "–": "–", "to": " to ", "and": " and ", "or": " or ", "by": " by ", "x": " × ", "×": " × "},
    **{"*": " × ", "xx": " × ", "+/-": " ± ", "±": " ± ", "+": " + ", ",": ", ", "to about": " to about "},
    **{"to(-)": " to ", "and(-)": " and ", "or(-)": " or ", "-to-": " to ", "by(x)": " by ", "x(by)": " × "},
}
# Units that may follow a value in a larger unit, as in 5 ft 6 in.
_SMALLER = frozenset(
    {"in", "oz", "lb", "ft", "yd", "st", "ch", "furlong", "fur", "drachm", "pt", "fl oz", "min", "s"}
)
_UNITS = {"C": "°C", "F": "°F", "K-change": "K", "C-change": "°C", "F-change": "°F", "ug": "µg", "mcg": "µg"}
_UNITS |= {
    "sqmi": "sq mi",
    "sqft": "sq ft",
    "cuft": "cu ft",
    "impgal": "imp gal",
    "usgal": "US gal",
    **{"sqkm": "km2", "sqm": "m2", "sqcm": "cm2", "sqmm": "mm2", "cukm": "km3", "cum": "m3", "cucm": "cm3"},
    **{"sqin": "sq in", "sqyd": "sq yd", "cuin": "cu in", "cuyd": "cu yd", "cumm": "mm3"},
    "mmHg": "mmHg",
}
_MOST_VALUES = 20  # maximum number of positional arguments of a measure that are read
_LONGEST_NUMBER = 40
_LONGEST_FORMULA = 500
_NUMBER = re.compile(r"[-+−±]?[\d.,]*\d(?:[eE][-+−]?\d+)?(?:\+?\d*(?:/+|⁄)\d+)?|[-+−]?\d+/+\d+")
_UNIT_POWER = re.compile(r"(?<=[A-Za-z])(-?[23])(?=$|[/.·⋅* ])")
_MONTHS: tuple[str, ...] = (
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
)
_MONTHS += ("November", "December")


def render_template(name: str, arguments: TemplateArguments) -> str | None:
    """Return the text that a template shows; None if the template is unknown or shows no text."""
    name = " ".join(name.replace("_", " ").split()).lower().removeprefix("template:")
    if name in _CHARACTERS:
        return _CHARACTERS[name]
    function, colon, value = name.partition(":")
    if colon and function in {"formatnum", "lc", "uc", "lcfirst", "ucfirst"}:
        return value
    if name in _LISTS:
        return ", ".join(filter(None, arguments.positional_values()))
    if name in _MONEY:
        return _MONEY[name] + arguments["1"]
    if name in _FIRST:
        return arguments.first_nonempty(*_FIRST[name]) or None
    return _RENDERERS[name](arguments) or None if name in _RENDERERS else None


def _render_measure(arguments: TemplateArguments) -> str:
    """Render a measure without its conversion: `{{convert|10|to|20|mg|gr}}` becomes 10 to 20 mg."""
    values = [*arguments.positional_values()[:_MOST_VALUES], "", ""]
    text, at = "", 0
    while _is_number(values[at]):
        text += _render_number(values[at])
        at += 1
        while values[at] in _RANGES and _is_number(values[at + 1]):
            text += _RANGES[values[at]] + _render_number(values[at + 1])
            at += 2
        text += f" {_render_unit(values[at])}"
        if at + 2 >= len(values) or values[at + 2] not in _SMALLER:
            break
        text += " "
        at += 1
    return text.strip() or " ".join(values[:2]).strip()


def _is_number(text: str) -> bool:
    return len(text) <= _LONGEST_NUMBER and _NUMBER.fullmatch(text) is not None


def _render_number(number: str) -> str:
    """Render a number: `1+1/2` becomes 1 1/2, and `2e6` becomes 2×10⁶."""
    number = number.replace("//", "/").replace("⁄", "/")
    if "/" in number:
        return number.replace("+", " ")
    mantissa, e, power = number.lower().partition("e")
    return f"{mantissa}×10{SUP}{power.lstrip('+')}{END}" if e else number


def _render_unit(unit: str) -> str:
    return _UNIT_POWER.sub(rf"{SUP}\1{END}", _UNITS.get(unit, unit))


def _render_quantity(arguments: TemplateArguments) -> str:
    """Render the template `val`: a number with its uncertainty, power of ten and unit."""
    value, *errors = arguments.positional_values()[:_MOST_VALUES] or [""]
    while len(errors) > 1 and errors[0] in _RANGES:
        value, errors = f"{value}{_RANGES[errors[0]]}{errors[1]}", errors[2:]
    if len(errors) > 1:
        value += f" +{errors[0].lstrip('+')}/−{errors[1].lstrip('-−+')}"
    elif errors and errors[0]:
        value += f"±{errors[0]}"
    if power := arguments["e"]:
        value = f"({value})" if errors and value else value
        value += f"{'×' if value else ''}10{SUP}{power}{END}"
    unit, per = arguments.first_nonempty("u", "ul"), arguments.first_nonempty("up", "upl")
    unit = _render_unit(unit) + (f"/{_render_unit(per)}" if per else "")
    joint = "" if unit in {"%", "°", "'", '"'} else " "
    return (
        arguments.first_nonempty("p", "pre")
        + value
        + arguments.first_nonempty("s", "suf")
        + (joint + unit if unit else "")
    )


_FRENCH_NUMBER = re.compile(r"[-+−±]?[\d., \xa0\u202f]*\d")
_FRENCH_RANGES = {
    "-": "–",
    "–": "–",
    "à": " à ",
    "et": " et ",
    "ou": " ou ",
    "x": " × ",
    "×": " × ",
    "±": " ± ",
}


def _render_french_measure(arguments: TemplateArguments) -> str:
    """Render a French measure: `{{unité|5|à|10|mg|L|-1}}` becomes 5 à 10 mg·L⁻¹."""
    values = arguments.positional_values()[:_MOST_VALUES]
    text = values.pop(0) if values else ""
    while len(values) > 1 and values[0] in _FRENCH_RANGES and _FRENCH_NUMBER.fullmatch(values[1]):
        text += _FRENCH_RANGES[values.pop(0)] + values.pop(0)
    if values and _FRENCH_NUMBER.fullmatch(values[0]):  # two consecutive numbers are a range
        text += f"–{values.pop(0)}"
    if error := arguments["±"]:
        text += f"±{error}"
    if power := arguments["e"]:
        text += f"×10{SUP}{power}{END}"
    units = ""
    for value in values:
        if _is_number(value):
            units += f"{SUP}{value}{END}" if value != "1" else ""
        else:
            units += ("·" if units and not value.startswith("/") else "") + value
    return f"{text} {units}".strip()


def _render_fraction(arguments: TemplateArguments) -> str:
    match arguments.positional_values():
        case [below]:
            return f"{FRACTION}1/{below}"
        case [above, below]:
            return f"{FRACTION}{above}/{below}"
        case [whole, above, below, *_]:
            return f"{FRACTION}{whole} {above}/{below}"
        case _:
            return ""


def _render_chem(arguments: TemplateArguments) -> str:
    """Render the formula `{{chem|SO|4|2-}}`: counts become subscripts, charges and mass superscripts."""
    text = ""
    for part in arguments.positional_values():
        if re.fullmatch(r"\d*[+\-−]", part):
            text += f"{SUP}{part}{END}"
        elif re.fullmatch(r"[\d.,]+", part):
            text += f"{SUB if text else SUP}{part}{END}"
        else:
            text += part
    return text


def _render_chem2(arguments: TemplateArguments) -> str:
    """Render the formula `{{chem2|SO4(2-)}}`, in the notation of mhchem."""
    if len(arguments["1"]) > _LONGEST_FORMULA:
        return arguments["1"]
    text = arguments["1"].replace("<->", " ⇌ ").replace("->", " → ").replace("<=>", " ⇌ ")
    text = re.sub(r"\^\{?([^{}\s]+?)\}?(?=[\s}]|$|[A-Z])", rf"{SUP}\1{END}", text)
    text = re.sub(r"_\{([^{}]*)\}|_(\d+)", lambda m: f"{SUB}{m[1] or m[2]}{END}", text)
    text = re.sub(r"\((\d*[+\-−])\)", rf"{SUP}\1{END}", text)
    text = re.sub(r"(?<=[A-Za-z)\]])(\d+(?:\.\d+)?)", rf"{SUB}\1{END}", text)
    return re.sub(rf"(?<=[A-Za-z)\]{END}])([+−]|-(?=\s|$|\)))(?![A-Za-z])", rf"{SUP}\1{END}", text)


def _render_height(arguments: TemplateArguments) -> str:
    shown = ((arguments[unit], unit) for unit in ("m", "cm", "ft", "in"))
    return " ".join(f"{value} {unit}" for value, unit in shown if value)


def _render_as_of_date(arguments: TemplateArguments) -> str:
    year, month, day = (*arguments.positional_values(), "", "", "")[:3]
    if month.isdigit() and 1 <= int(month) <= 12:
        month = _MONTHS[int(month) - 1]
    date = " ".join(filter(None, (day, month, year)))
    if other := arguments["alt"]:
        return other
    return f"{'as' if arguments['lc'] else 'As'} of{' ' if date else ''}{date}"


def _joining_renderer(mark: str, *names: str) -> Callable[[TemplateArguments], str]:
    return lambda arguments: mark.join(filter(None, (arguments[name] for name in names)))


def _sup_or_sub_renderer(mark: str) -> Callable[[TemplateArguments], str]:
    return lambda arguments: f"{mark}{arguments['1']}{END}" if arguments["1"] else ""


def _render_power_of_ten(arguments: TemplateArguments) -> str:
    power = arguments["1"]
    return f"×10{SUP}{power}{END}" if power else "e"


_RENDERERS: dict[str, Callable[[TemplateArguments], str]] = {
    "convert": _render_measure,
    "cvt": _render_measure,
    "conv": _render_measure,
    "val": _render_quantity,
    "frac": _render_fraction,
    "sfrac": _render_fraction,
    "fraction": _render_fraction,
    "sfraction": _render_fraction,
    "frac2": _render_fraction,
    "chem": _render_chem,
    "chem2": _render_chem2,
    "height": _render_height,
    "as of": _render_as_of_date,
    "asof": _render_as_of_date,
    **dict.fromkeys(("plusmn", "±", "pm", "+-"), lambda a: f"±{a['1']}"),
    "sup": _sup_or_sub_renderer(SUP),
    "superscript": _sup_or_sub_renderer(SUP),
    "sub": _sup_or_sub_renderer(SUB),
    "subscript": _sup_or_sub_renderer(SUB),
    "su": lambda a: f"{SUB}{a.first_nonempty('b', '2')}{END}{SUP}{a.first_nonempty('p', '1')}{END}",
    "sub sup": lambda a: f"{a['1']}{SUB}{a['2']}{END}{SUP}{a['3']}{END}",
    "subsup": lambda a: f"{a['1']}{SUB}{a['2']}{END}{SUP}{a['3']}{END}",
    "e": _render_power_of_ten,
    "10^": lambda a: f"10{SUP}{a['1']}{END}",
    "10e": lambda a: f"10{SUP}{a['1']}{END}",
    "x10^": _render_power_of_ten,
    "sqrt": lambda a: f"√({a['1']})" if len(a["1"]) > 1 else f"√{a['1']}",
    "radic": lambda a: f"√({a['1']})" if len(a["1"]) > 1 else f"√{a['1']}",
    "abs": lambda a: f"|{a['1']}|",
    "angbr": lambda a: f"⟨{a['1']}⟩",
    "angle bracket": lambda a: f"⟨{a['1']}⟩",
    "circa": lambda a: f"c. {a['1']}" if a["1"] else "c.",
    "c.": lambda a: f"c. {a['1']}" if a["1"] else "c.",
    "ca.": lambda a: f"c. {a['1']}" if a["1"] else "c.",
    **dict.fromkeys(("unité", "unite", "unit", "nombre", "nb", "unidad", "fmtn"), _render_french_measure),
    **dict.fromkeys(
        ("bruch", "fracción", "fração", "frazione", "дробь", "breuk", "ułamek"), _render_fraction
    ),
    **dict.fromkeys(("fchim", "formule chimique"), _render_chem),
    **dict.fromkeys(("ce", "chemform"), _render_chem2),
    **dict.fromkeys(("exp", "exposant", "e-", "степень"), _sup_or_sub_renderer(SUP)),
    **dict.fromkeys(("ind", "indice"), _sup_or_sub_renderer(SUB)),
    "sup sub": lambda a: f"{SUP}{a['1']}{END}{SUB}{a['2']}{END}",
    **dict.fromkeys(
        ("date", "date-", "date de naissance", "date de naissance-", "date de décès", "date de décès-"),
        _joining_renderer(" ", "1", "2", "3"),
    ),
    "gaps": lambda a: "".join(a.positional_values()),
    **dict.fromkeys(
        ("nuclide", "simple nuclide", "nuclide2"), lambda a: f"{SUP}{a['2']}{END}{a['1'].capitalize()}"
    ),
}
