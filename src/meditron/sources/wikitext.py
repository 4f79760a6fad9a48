"""Conversion of wikitext to sections of plain text.

The text contains prose, link texts, lists, the source of formulas and code, and the text of the templates in
`wiki_templates`. Super- and subscripts are converted as in `scripts`. These are removed: all other templates,
tables, references, galleries, files with their captions, categories, links to the page in other languages,
behaviour switches such as `__NOTOC__`, and comments.
"""

import html
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from meditron.core.errors import MissingExtra
from meditron.sources.document import Section
from meditron.sources.scripts import END, SUB, SUP, render_sup_and_sub_marks
from meditron.sources.wiki_balance import VERBATIM, TooMuchMarkup, balance_markup
from meditron.sources.wiki_templates import FRACTION, TemplateArguments, render_template

__all__ = ["NAMESPACES", "TooMuchMarkup", "WikiSite", "parse_sections"]

NAMESPACES = {
    **{-2: "Media", -1: "Special", 1: "Talk", 2: "User", 3: "User talk", 4: "Project", 5: "Project talk"},
    **{6: "File", 7: "File talk", 8: "MediaWiki", 9: "MediaWiki talk", 10: "Template", 11: "Template talk"},
    **{12: "Help", 13: "Help talk", 14: "Category", 15: "Category talk", 100: "Portal", 828: "Module"},
}
"""Number → English name of a namespace. These names are valid on every wiki, in addition to its own."""
# Names of the file and category namespaces that `<siteinfo>` does not list but pages still use.
_FILE_NAMES = """
image bild imagen immagine imagem afbeelding grafika изображение 画像 图像 圖像 檔案 文件 datei fichier
archivo ficheiro bestand plik файл ファイル 파일 fil 그림 картинка зображення слика slika صورة تصویر پرونده
תמונה קובץ kép soubor obrázok kuva tiedosto bilde billede resim dosya hình imagine fișier imatge fitxer
dosiero irudi gambar berkas εικόνα αρχείο ਤਸਵੀਰ चित्र चित्र ছবি
"""
_FILE_NAMESPACES = frozenset(_FILE_NAMES.split())
_CATEGORY_NAMES = """
kategorie catégorie categoría categoria categorie kategoria категория категорія category カテゴリ 分類 分类
분류 تصنيف رده קטגוריה kategória kategori luokka kategorija категорија κατηγορία thể_loại श्रेणी
"""
_CATEGORY_NAMESPACES = frozenset(name.replace("_", " ") for name in _CATEGORY_NAMES.split())
# Links to files whose namespace is in no list are recognised by the suffix of a media file.
_MEDIA = re.compile(
    r"[^:\[\]]+:.+\.(?:jpe?g|png|svg|gif|tiff?|webp|og[gv]|webm|djvu|xcf|mid|wav|flac|stl)", re.I
)
_HIDDEN = (-2, 6, 14)  # namespaces of media, files and categories; a link into them shows no text

_LANGUAGE_CODES = """
aa ab ace ady af ak als alt am ami an ang ann anp ar arc ary arz as ast atj av avk awa ay az azb ba ban
bar bbc bcl bdr be be-tarask be-x-old bew bg bh bi bjn blk bm bn bo bpy br bs btm bug bxr ca cbk-zam cdo
ce ceb ch cho chr chy ckb co cr crh cs csb cu cv cy da dag de dga din diq dsb dtp dty dv dz ee el eml en
eo es et eu ext fa fat ff fi fiu-vro fj fo fon fr frp frr fur fy ga gag gan gcr gd gl glk gn gom gor got
gpe gu guc gur guw gv ha hak haw he hi hif ho hr hsb ht hu hy hyw hz ia iba id ie ig igl ii ik ilo inh io
is it iu ja jam jbo jv ka kaa kab kbd kbp kcg kg kge ki kj kk kl km kn knc ko koi kr krc ks ksh ku kus kv
kw ky la lad lb lbe lez lfn lg li lij lld lmo ln lo lrc lt ltg lv mad mai map-bms mdf mg mh mhr mi min mk
ml mn mni mnw mo mos mr mrj ms mt mus mwl my myv mzn na nah nap nds nds-nl ne new ng nia nl nn no nb nov
nqo nr nrm nso nup nv ny oc olo om or os pa pag pam pap pcd pcm pdc pfl pi pih pl pms pnb pnt ps pt pwn qu
rm rmy rn ro roa-rup roa-tara ru rue rsk rw sa sah sat sc scn sco sd se sg sh shi shn si simple sk skr sl
sm smn sn so sq sr srn ss st stq su sv sw szl szy ta tay tcy tdd te tet tg th ti tig tk tl tly tn to tpi
tr trv ts tt tum tw ty tyv udm ug uk ur uz ve vec vep vi vls vo wa war wo wuu xal xh xmf yi yo yue za zea
zgh zh zh-classical zh-min-nan zh-yue zu
"""
_LANGUAGES = frozenset(_LANGUAGE_CODES.split())
# Prefixes of links to other projects: `[[wikt:word]]` is shown as "word".
_PROJECT_PREFIXES = """
w wikt wiktionary wikipedia s wikisource b wikibooks n wikinews q wikiquote v wikiversity voy wikivoyage
species wikispecies c commons d wikidata m meta mw f wmf foundation doi pmid rfc oeis
"""
_PROJECTS = frozenset(_PROJECT_PREFIXES.split())
_SWITCH = re.compile(
    "__(?:NOTOC|FORCETOC|TOC|NOEDITSECTION|NEWSECTIONLINK|NONEWSECTIONLINK|NOGALLERY|HIDDENCAT|NOCONTENTCONVERT|NOCC"
    "|NOTITLECONVERT|NOTC|START|END|INDEX|NOINDEX|STATICREDIRECT|DISAMBIG|NOGLOBAL|EXPECTUNUSEDCATEGORY"
    "|EXPECTUNUSEDTEMPLATE|EXPECTWITHOUTSCANS|EXPECTED_UNCONNECTED_PAGE|ARCHIVEDTALK|NOTALK)__",
    re.IGNORECASE,
)
_NAMED_SWITCHES = """
KEIN_INHALTSVERZEICHNIS KEININHALTSVERZEICHNIS INHALTSVERZEICHNIS INHALTSVERZEICHNIS_ERZWINGEN
ABSCHNITTE_NICHT_BEARBEITEN KEINE_INDEXIERUNG VERSTECKTE_KATEGORIE AUCUNSOMMAIRE AUCUNTDM FORCERSOMMAIRE
FORCERTDM SOMMAIRE TDM AUCUNEGALERIE SANSINDEX SIN_TDC SINTDC NO_TDC NOTDC TDC FORZAR_TDC FORZARTDC
NO_EDITAR_SECCION NOEDITARSECCION NO_GALERIA NOGALERIA NOINDICE INDICE FORZAINDICE FORCARTDC FORCARSUMARIO
SEMTDC SEMSUMARIO SUMARIO SEMGALERIA GEEN_INHOUD GEENINHOUD INHOUD INHOUD_DWINGEN NIETBEWERKBARESECTIE
BEZSPISU SPIS WYMUŚSPIS BEZEDYCJI BEZGALERII INGENINNEHÅLLSFÖRTECKNING INNEHÅLLSFÖRTECKNING
"""
# Switches in other languages are recognised by their form: capitals between double underscores, with at least
# one letter that English does not have (`__БЕЗ_ОГЛ__`), or alone on a line.
_OTHER_SWITCH = re.compile(
    rf"__(?:{'|'.join(_NAMED_SWITCHES.split())}|(?!_)(?=[A-Z\d_]*[^\W\x00-\x7f])[^\Wa-z\d]+(?<!_))__"
)
_LINE_OF_SWITCHES = re.compile(r"^[ \t]*(?:__(?!_)[^\Wa-z\d]+(?<!_)__[ \t]*)+$", re.MULTILINE)
_CONVERTED = frozenset({"zh", "gan", "wuu", "sr", "sh", "kk", "ku", "uz", "tg", "crh", "iu", "shi", "tly"})
_VARIANT = re.compile(r"-\{(?:([-A-Za-z;\s]{0,40})\|)?([^{}|]*)\}-")
_VARIANT_NAME = re.compile(r"\s*[a-z]{2,3}(?:-[a-z]+)?\s*:\s*")
_CONTROL = re.compile("[\0-\x08\x0b\x0c\x0e-\x1f]")
_SPACE = re.compile(r"[ \t]+")
_BLANK_LINES = re.compile(r" ?\n ?(?:\n ?)+")
# Marks of italic and bold; a further apostrophe before them is a real apostrophe.
_QUOTES = re.compile("('*?)(?:'{5}|'{3}|'{2})(?!')")
# Placeholder of a template without text; parentheses that contain nothing else are removed with it.
_REMOVED = "\0"
_NOTHING = re.compile(rf" ?\((?:[ ,;]*+{_REMOVED})++[ ,;]*+\)")
_OPENING = re.compile(rf"\((?:[ ,;]*+{_REMOVED})++[ ,;]*+")
# Matched only at the first placeholder of a run, because runs of many templates would take quadratic time.
_CLOSING = re.compile(rf"(?<![ ,;{_REMOVED}])(?:[ ,;]*+{_REMOVED})++[ ,;]*+\)")
_LEFT_OUT = frozenset(
    {"ref", "references", "gallery", "table", "timeline", "imagemap", "graph", "score", "templatedata"}
    | {"indicator", "noinclude", "mapframe", "section", "categorytree", "inputbox", "style", "hiero"}
)
_BLOCKS = frozenset(
    {"blockquote", "p", "div", "poem", "dd", "dt", "pre", "syntaxhighlight", "source", "center"}
)


@dataclass(frozen=True, slots=True)
class WikiSite:
    """The namespaces and the language of a wiki."""

    namespaces: Mapping[int, str]
    """Number → local name of a namespace."""
    language: str | None = None
    """Language code of the wiki, such as `de`."""

    @property
    def has_writing_system_variants(self) -> bool:
        """True if the language has several writing systems, marked by `-{zh-hans:…; zh-hant:…}-`."""
        return (self.language or "").partition("-")[0] in _CONVERTED

    def namespace_of(self, title: str) -> int:
        """Return the number of the namespace that a title's prefix names; 0, for articles, without one."""
        prefix, colon, _ = title.partition(":")
        prefix = _normalize_namespace_name(prefix)
        if not colon:
            return 0
        local = next(
            (
                key
                for key, name in self.namespaces.items()
                if key and _normalize_namespace_name(name) == prefix
            ),
            0,
        )
        common = next(
            (key for key, name in NAMESPACES.items() if _normalize_namespace_name(name) == prefix), 0
        )
        older = (
            6
            if prefix in _FILE_NAMESPACES or _MEDIA.fullmatch(title.strip())
            else 14 * (prefix in _CATEGORY_NAMESPACES)
        )
        return local or common or older

    def link_text(self, title: str) -> str | None:
        """Return the text that a link `[[title]]` shows; None if it shows no text."""
        title = title.strip()
        if title.startswith(":"):
            return title.lstrip(": ")
        if self.namespace_of(title) in _HIDDEN:
            return None
        prefix, colon, rest = title.partition(":")
        prefix = _normalize_namespace_name(prefix)
        if colon and prefix in _LANGUAGES and prefix != self.language:
            return None
        return rest.strip() if colon and prefix in _PROJECTS else title


def _normalize_namespace_name(name: str) -> str:
    return " ".join(name.replace("_", " ").split()).casefold()


def parse_sections(wikitext: str, site: WikiSite | None = None) -> Iterator[Section]:
    """Yield the sections of a page as plain text. Sections without text are left out.

    The label of a section is its heading. Its path has the headings of the enclosing sections: a section with
    the heading `== A ==` encloses the following sections with headings of a lower level, such as `=== B ===`.

    Raises:
        TooMuchMarkup: The page has more markup than can be parsed in bounded time.
    """
    try:
        import mwparserfromhell as parser
    except ImportError as error:
        raise MissingExtra("mwparserfromhell", "corpus") from error
    plain = _PlainTextRenderer(site or WikiSite({}))
    open_headings: list[
        tuple[int, str]
    ] = []  # level and text of the current section's heading and its enclosing headings
    pieces: list[str] = []
    wikitext = _CONTROL.sub("", wikitext)
    if plain.site.has_writing_system_variants:
        wikitext = _VARIANT.sub(_first_writing_system_variant, wikitext)
    # Style tags are not parsed: unpaired quotes would make the parser treat the markup between them as text.
    nodes = parser.parse(balance_markup(wikitext), skip_style_tags=True).nodes
    for node in [*nodes, None]:
        if node is not None and not isinstance(node, parser.nodes.Heading):
            pieces.append(plain.render_node(node))
            continue
        if text := _tidy_text("".join(pieces)):
            *above, label = [heading for _, heading in open_headings] or [""]
            yield Section(text, label or None, heading_path=tuple(filter(None, above)))
        if node is not None:
            pieces = []
            open_headings = [(level, heading) for level, heading in open_headings if level < node.level]
            open_headings.append((node.level, _tidy_text(plain.render_nodes(node.title))))


def _first_writing_system_variant(match: re.Match[str]) -> str:
    """Return the text of `-{…}-` in the first writing system; an empty text for a rule without text."""
    if {"H", "T", "-"} & {flag.strip() for flag in (match[1] or "").split(";")}:
        return ""
    name = _VARIANT_NAME.match(match[2])
    return match[2] if name is None else match[2][name.end() :].partition(";")[0].strip()


class _PlainTextRenderer:
    """Renders a page's nodes as text, with marks for superscripts, subscripts and removed templates."""

    def __init__(self, site: WikiSite) -> None:
        self.site = site

    def render_nodes(self, code: Any) -> str:  # noqa: ANN401  # mwparserfromhell has no types
        return "" if code is None else "".join(self.render_node(node) for node in code.nodes)

    def render_node(self, node: Any) -> str:  # noqa: ANN401
        match type(node).__name__:
            case "Text":
                return _QUOTES.sub(r"\1", _SWITCH.sub("", str(node.value)))
            case "HTMLEntity":  # like browsers, html.unescape reads half of a surrogate pair as U+FFFD
                return _CONTROL.sub("", html.unescape(str(node)))
            case "Wikilink":
                shown = self.site.link_text(str(node.title))
                if shown is None:
                    return ""
                shown = self.render_nodes(node.text) if str(node.text or "").strip() else shown
                return shown if "<" not in shown and "{{" not in shown else self.render_nodes(node.title)
            case "ExternalLink":
                return self.render_nodes(node.title) if node.brackets else str(node.url)
            case "Template":
                shown = render_template(str(node.name), TemplateArguments(node, self.render_nodes))
                return _REMOVED if shown is None else shown
            case "Heading":
                return f"\n{self.render_nodes(node.title)}\n"
            case "Tag":
                return self.render_tag(node)
            case _:  # comments and arguments of templates
                return ""

    def render_tag(self, node: Any) -> str:  # noqa: ANN401
        name = str(node.tag).strip().lower()
        if name in _LEFT_OUT:
            return ""
        if name in {"br", "hr"}:
            return "\n"
        if name == "li" and node.wiki_markup:
            return "- "
        if name in {"sup", "sub"}:
            inner = self.render_nodes(node.contents)
            return f"{SUP if name == 'sup' else SUB}{inner}{END}" if inner.strip(f" \n{_REMOVED}") else ""
        inner = str(node.contents or "") if name in VERBATIM else self.render_nodes(node.contents)
        if name in {"nowiki", "pre"}:
            inner = _CONTROL.sub("", html.unescape(inner))
        return f"\n{inner}\n" if name in _BLOCKS and not node.wiki_markup else inner


def _tidy_text(text: str) -> str:
    text = render_sup_and_sub_marks(re.sub(rf"(?<=\d){FRACTION}", " ", text).replace(FRACTION, ""))
    if _REMOVED in text:
        text = _CLOSING.sub(")", _OPENING.sub("(", _NOTHING.sub("", text))).replace(_REMOVED, "")
    text = _LINE_OF_SWITCHES.sub("", _OTHER_SWITCH.sub("", text))
    lines = (_SPACE.sub(" ", line).strip() for line in text.replace("\xa0", " ").split("\n"))
    kept = "\n".join("" if line.strip("-*• ") == "" else line for line in lines)
    return _BLANK_LINES.sub("\n\n", kept).strip()
