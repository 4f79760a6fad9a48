"""Templates of MediaWiki whose arguments are visible text."""

import re
from collections.abc import Callable
from typing import Any

from meditron.sources.scripts import END, SUB, SUP

__all__ = ["FRACTION", "Arguments", "render"]

FRACTION = "\x04"
"""Mark before a fraction: becomes a blank after a digit, so 3{{frac|1|2}} does not read 31/2."""


class Arguments:
    """A template's arguments as text, converted on first use."""

    def __init__(self, node: Any, text: Callable[[Any], str]) -> None:  # noqa: ANN401  # no types
        self._values = {str(param.name).strip(): param.value for param in node.params}
        self._text = text

    def __getitem__(self, name: str) -> str:
        """Return the argument, or an empty text."""
        return self._text(self._values[name]).strip() if name in self._values else ""

    def first(self, *names: str) -> str:
        """Return the first of these arguments that is not empty."""
        return next(filter(None, map(self.__getitem__, names)), "")

    def positional(self) -> list[str]:
        """Return the arguments 1, 2, … up to the first that is missing."""
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
# Templates that show one argument: the first of these that is present.
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
# Units that may follow a larger one: 5 ft 6 in.
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
_MOST_VALUES = 20  # positional arguments of a measure
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


def render(name: str, arguments: Arguments) -> str | None:
    """Return the text of a template; None for an unknown one and for one without text."""
    name = " ".join(name.replace("_", " ").split()).lower().removeprefix("template:")
    if name in _CHARACTERS:
        return _CHARACTERS[name]
    function, colon, value = name.partition(":")
    if colon and function in {"formatnum", "lc", "uc", "lcfirst", "ucfirst"}:
        return value
    if name in _LISTS:
        return ", ".join(filter(None, arguments.positional()))
    if name in _MONEY:
        return _MONEY[name] + arguments["1"]
    if name in _FIRST:
        return arguments.first(*_FIRST[name]) or None
    return _HANDLERS[name](arguments) or None if name in _HANDLERS else None


def _convert(arguments: Arguments) -> str:
    """Render a measure: `10|to|20|mg|gr` is 10 to 20 mg. The converted value is left out."""
    values = [*arguments.positional()[:_MOST_VALUES], "", ""]
    text, at = "", 0
    while _is_number(values[at]):
        text += _value(values[at])
        at += 1
        while values[at] in _RANGES and _is_number(values[at + 1]):
            text += _RANGES[values[at]] + _value(values[at + 1])
            at += 2
        text += f" {_unit(values[at])}"
        if at + 2 >= len(values) or values[at + 2] not in _SMALLER:
            break
        text += " "
        at += 1
    return text.strip() or " ".join(values[:2]).strip()


def _is_number(text: str) -> bool:
    return len(text) <= _LONGEST_NUMBER and _NUMBER.fullmatch(text) is not None


def _value(number: str) -> str:
    """Write `1+1/2` as a number and a fraction, `2e6` as a power of ten."""
    number = number.replace("//", "/").replace("⁄", "/")
    if "/" in number:
        return number.replace("+", " ")
    mantissa, e, power = number.lower().partition("e")
    return f"{mantissa}×10{SUP}{power.lstrip('+')}{END}" if e else number


def _unit(unit: str) -> str:
    return _UNIT_POWER.sub(rf"{SUP}\1{END}", _UNITS.get(unit, unit))


def _val(arguments: Arguments) -> str:
    """Render a number with its error, power of ten and unit."""
    value, *errors = arguments.positional()[:_MOST_VALUES] or [""]
    while len(errors) > 1 and errors[0] in _RANGES:
        value, errors = f"{value}{_RANGES[errors[0]]}{errors[1]}", errors[2:]
    if len(errors) > 1:
        value += f" +{errors[0].lstrip('+')}/−{errors[1].lstrip('-−+')}"
    elif errors and errors[0]:
        value += f"±{errors[0]}"
    if power := arguments["e"]:
        value = f"({value})" if errors and value else value
        value += f"{'×' if value else ''}10{SUP}{power}{END}"
    unit, per = arguments.first("u", "ul"), arguments.first("up", "upl")
    unit = _unit(unit) + (f"/{_unit(per)}" if per else "")
    joint = "" if unit in {"%", "°", "'", '"'} else " "
    return arguments.first("p", "pre") + value + arguments.first("s", "suf") + (joint + unit if unit else "")


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


def _unite(arguments: Arguments) -> str:
    """Render a French measure: `{{unité|5|à|10|mg|L|-1}}` is 5 à 10 mg·L⁻¹."""
    values = arguments.positional()[:_MOST_VALUES]
    text = values.pop(0) if values else ""
    while len(values) > 1 and values[0] in _FRENCH_RANGES and _FRENCH_NUMBER.fullmatch(values[1]):
        text += _FRENCH_RANGES[values.pop(0)] + values.pop(0)
    if values and _FRENCH_NUMBER.fullmatch(values[0]):  # two numbers in a row are a range
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


def _fraction(arguments: Arguments) -> str:
    match arguments.positional():
        case [below]:
            return f"{FRACTION}1/{below}"
        case [above, below]:
            return f"{FRACTION}{above}/{below}"
        case [whole, above, below, *_]:
            return f"{FRACTION}{whole} {above}/{below}"
        case _:
            return ""


def _chem(arguments: Arguments) -> str:
    """Render a formula like `SO|4|2-`: numbers become subscripts, charges and a mass superscripts."""
    text = ""
    for part in arguments.positional():
        if re.fullmatch(r"\d*[+\-−]", part):
            text += f"{SUP}{part}{END}"
        elif re.fullmatch(r"[\d.,]+", part):
            text += f"{SUB if text else SUP}{part}{END}"
        else:
            text += part
    return text


def _chem2(arguments: Arguments) -> str:
    """Render a formula in mhchem's notation: `SO4(2-)`."""
    if len(arguments["1"]) > _LONGEST_FORMULA:
        return arguments["1"]
    text = arguments["1"].replace("<->", " ⇌ ").replace("->", " → ").replace("<=>", " ⇌ ")
    text = re.sub(r"\^\{?([^{}\s]+?)\}?(?=[\s}]|$|[A-Z])", rf"{SUP}\1{END}", text)
    text = re.sub(r"_\{([^{}]*)\}|_(\d+)", lambda m: f"{SUB}{m[1] or m[2]}{END}", text)
    text = re.sub(r"\((\d*[+\-−])\)", rf"{SUP}\1{END}", text)
    text = re.sub(r"(?<=[A-Za-z)\]])(\d+(?:\.\d+)?)", rf"{SUB}\1{END}", text)
    return re.sub(rf"(?<=[A-Za-z)\]{END}])([+−]|-(?=\s|$|\)))(?![A-Za-z])", rf"{SUP}\1{END}", text)


def _height(arguments: Arguments) -> str:
    shown = ((arguments[unit], unit) for unit in ("m", "cm", "ft", "in"))
    return " ".join(f"{value} {unit}" for value, unit in shown if value)


def _as_of(arguments: Arguments) -> str:
    year, month, day = (*arguments.positional(), "", "", "")[:3]
    if month.isdigit() and 1 <= int(month) <= 12:
        month = _MONTHS[int(month) - 1]
    date = " ".join(filter(None, (day, month, year)))
    if other := arguments["alt"]:
        return other
    return f"{'as' if arguments['lc'] else 'As'} of{' ' if date else ''}{date}"


def _joined(mark: str, *names: str) -> Callable[[Arguments], str]:
    return lambda arguments: mark.join(filter(None, (arguments[name] for name in names)))


def _script(mark: str) -> Callable[[Arguments], str]:
    return lambda arguments: f"{mark}{arguments['1']}{END}" if arguments["1"] else ""


def _power(arguments: Arguments) -> str:
    power = arguments["1"]
    return f"×10{SUP}{power}{END}" if power else "e"


_HANDLERS: dict[str, Callable[[Arguments], str]] = {
    "convert": _convert,
    "cvt": _convert,
    "conv": _convert,
    "val": _val,
    "frac": _fraction,
    "sfrac": _fraction,
    "fraction": _fraction,
    "sfraction": _fraction,
    "frac2": _fraction,
    "chem": _chem,
    "chem2": _chem2,
    "height": _height,
    "as of": _as_of,
    "asof": _as_of,
    **dict.fromkeys(("plusmn", "±", "pm", "+-"), lambda a: f"±{a['1']}"),
    "sup": _script(SUP),
    "superscript": _script(SUP),
    "sub": _script(SUB),
    "subscript": _script(SUB),
    "su": lambda a: f"{SUB}{a.first('b', '2')}{END}{SUP}{a.first('p', '1')}{END}",
    "sub sup": lambda a: f"{a['1']}{SUB}{a['2']}{END}{SUP}{a['3']}{END}",
    "subsup": lambda a: f"{a['1']}{SUB}{a['2']}{END}{SUP}{a['3']}{END}",
    "e": _power,
    "10^": lambda a: f"10{SUP}{a['1']}{END}",
    "10e": lambda a: f"10{SUP}{a['1']}{END}",
    "x10^": _power,
    "sqrt": lambda a: f"√({a['1']})" if len(a["1"]) > 1 else f"√{a['1']}",
    "radic": lambda a: f"√({a['1']})" if len(a["1"]) > 1 else f"√{a['1']}",
    "abs": lambda a: f"|{a['1']}|",
    "angbr": lambda a: f"⟨{a['1']}⟩",
    "angle bracket": lambda a: f"⟨{a['1']}⟩",
    "circa": lambda a: f"c. {a['1']}" if a["1"] else "c.",
    "c.": lambda a: f"c. {a['1']}" if a["1"] else "c.",
    "ca.": lambda a: f"c. {a['1']}" if a["1"] else "c.",
    **dict.fromkeys(("unité", "unite", "unit", "nombre", "nb", "unidad", "fmtn"), _unite),
    **dict.fromkeys(("bruch", "fracción", "fração", "frazione", "дробь", "breuk", "ułamek"), _fraction),
    **dict.fromkeys(("fchim", "formule chimique"), _chem),
    **dict.fromkeys(("ce", "chemform"), _chem2),
    **dict.fromkeys(("exp", "exposant", "e-", "степень"), _script(SUP)),
    **dict.fromkeys(("ind", "indice"), _script(SUB)),
    "sup sub": lambda a: f"{SUP}{a['1']}{END}{SUB}{a['2']}{END}",
    **dict.fromkeys(
        ("date", "date-", "date de naissance", "date de naissance-", "date de décès", "date de décès-"),
        _joined(" ", "1", "2", "3"),
    ),
    "gaps": lambda a: "".join(a.positional()),
    **dict.fromkeys(
        ("nuclide", "simple nuclide", "nuclide2"), lambda a: f"{SUP}{a['2']}{END}{a['1'].capitalize()}"
    ),
}
