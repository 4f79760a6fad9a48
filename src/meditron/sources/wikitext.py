"""Conversion of wikitext to sections of plain text.

Kept: prose, link texts, lists, the source of formulas and code, and the templates in `wiki_templates`.
Powers and indices are written as in `scripts`. Left out: all other templates, tables, references, galleries,
files with their captions, categories, links to the page in other languages, switches, comments.
"""

import html
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from meditron.core.errors import MissingExtra
from meditron.sources.document import Section
from meditron.sources.scripts import END, SUB, SUP, resolve_scripts
from meditron.sources.wiki_balance import VERBATIM, TooMuchMarkup, balance
from meditron.sources.wiki_templates import FRACTION, Arguments, render

__all__ = ["NAMESPACES", "Site", "TooMuchMarkup", "sections"]

NAMESPACES = {
    **{-2: "Media", -1: "Special", 1: "Talk", 2: "User", 3: "User talk", 4: "Project", 5: "Project talk"},
    **{6: "File", 7: "File talk", 8: "MediaWiki", 9: "MediaWiki talk", 10: "Template", 11: "Template talk"},
    **{12: "Help", 13: "Help talk", 14: "Category", 15: "Category talk", 100: "Portal", 828: "Module"},
}
"""Names that are valid on every wiki in addition to its own."""
# Older names of files and categories, which siteinfo does not list and pages still use.
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
# A file whose namespace is in no list: no other link ends in a media suffix.
_MEDIA = re.compile(
    r"[^:\[\]]+:.+\.(?:jpe?g|png|svg|gif|tiff?|webp|og[gv]|webm|djvu|xcf|mid|wav|flac|stl)", re.I
)
_HIDDEN = (-2, 6, 14)  # a link into these shows no text: media, files, categories

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
# Prefixes of sister projects: `[[wikt:word]]` is shown as "word".
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
# In other languages: two underscores around capitals, of which one is no letter of English (`__БЕЗ_ОГЛ__`),
# or on a line of their own.
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
# Italic, bold or both; an apostrophe more than that is one.
_QUOTES = re.compile("('*?)(?:'{5}|'{3}|'{2})(?!')")
# Placeholder of a template without text; an empty parenthesis around it is removed.
_REMOVED = "\0"
_NOTHING = re.compile(rf" ?\((?:[ ,;]*+{_REMOVED})++[ ,;]*+\)")
_OPENING = re.compile(rf"\((?:[ ,;]*+{_REMOVED})++[ ,;]*+")
# Tried only at a run's first character: many templates in a row would take quadratic time otherwise.
_CLOSING = re.compile(rf"(?<![ ,;{_REMOVED}])(?:[ ,;]*+{_REMOVED})++[ ,;]*+\)")
_LEFT_OUT = frozenset(
    {"ref", "references", "gallery", "table", "timeline", "imagemap", "graph", "score", "templatedata"}
    | {"indicator", "noinclude", "mapframe", "section", "categorytree", "inputbox", "style", "hiero"}
)
_BLOCKS = frozenset(
    {"blockquote", "p", "div", "poem", "dd", "dt", "pre", "syntaxhighlight", "source", "center"}
)


@dataclass(frozen=True, slots=True)
class Site:
    """A wiki's names of namespaces, and its language."""

    namespaces: Mapping[int, str]
    language: str | None = None

    @property
    def has_variants(self) -> bool:
        """True if the wiki's pages exist in several scripts, marked by `-{zh-hans:…; zh-hant:…}-`."""
        return (self.language or "").partition("-")[0] in _CONVERTED

    def namespace(self, title: str) -> int:
        """Return the namespace of a page's title, by its prefix; 0 for an article."""
        prefix, colon, _ = title.partition(":")
        prefix = _fold_name(prefix)
        if not colon:
            return 0
        local = next((key for key, name in self.namespaces.items() if key and _fold_name(name) == prefix), 0)
        common = next((key for key, name in NAMESPACES.items() if _fold_name(name) == prefix), 0)
        older = (
            6
            if prefix in _FILE_NAMESPACES or _MEDIA.fullmatch(title.strip())
            else 14 * (prefix in _CATEGORY_NAMESPACES)
        )
        return local or common or older

    def link_text(self, title: str) -> str | None:
        """Return the text of a link without one of its own; None for a link that shows nothing."""
        title = title.strip()
        if title.startswith(":"):
            return title.lstrip(": ")
        if self.namespace(title) in _HIDDEN:
            return None
        prefix, colon, rest = title.partition(":")
        prefix = _fold_name(prefix)
        if colon and prefix in _LANGUAGES and prefix != self.language:
            return None
        return rest.strip() if colon and prefix in _PROJECTS else title


def _fold_name(name: str) -> str:
    return " ".join(name.replace("_", " ").split()).casefold()


def sections(wikitext: str, site: Site | None = None) -> Iterator[Section]:
    """Yield the sections of a page as plain text; sections without text are left out.

    A section's path is the headings of the sections around it: `== A ==` encloses `=== B ===`.

    Raises:
        TooMuchMarkup: The page has more markup than can be parsed in bounded time.
    """
    try:
        import mwparserfromhell as parser
    except ImportError as error:
        raise MissingExtra("mwparserfromhell", "corpus") from error
    plain = _PlainText(site or Site({}))
    headings: list[tuple[int, str]] = []  # level and text of the open section's heading and those above it
    pieces: list[str] = []
    wikitext = _CONTROL.sub("", wikitext)
    if plain.site.has_variants:
        wikitext = _VARIANT.sub(_first_variant, wikitext)
    # Style tags are skipped: quotes that do not pair would turn the markup between them into plain text.
    nodes = parser.parse(balance(wikitext), skip_style_tags=True).nodes
    for node in [*nodes, None]:
        if node is not None and not isinstance(node, parser.nodes.Heading):
            pieces.append(plain.node(node))
            continue
        if text := _tidy("".join(pieces)):
            *above, label = [heading for _, heading in headings] or [""]
            yield Section(text, label or None, path=tuple(filter(None, above)))
        if node is not None:
            pieces = []
            headings = [(level, heading) for level, heading in headings if level < node.level]
            headings.append((node.level, _tidy(plain.text(node.title))))


def _first_variant(match: re.Match[str]) -> str:
    """Return the text of `-{…}-` in the first variant that it has; nothing for a rule that shows none."""
    if {"H", "T", "-"} & {flag.strip() for flag in (match[1] or "").split(";")}:
        return ""
    name = _VARIANT_NAME.match(match[2])
    return match[2] if name is None else match[2][name.end() :].partition(";")[0].strip()


class _PlainText:
    """Conversion of a page's nodes to text in which scripts and removed templates are still marked."""

    def __init__(self, site: Site) -> None:
        self.site = site

    def text(self, code: Any) -> str:  # noqa: ANN401  # mwparserfromhell has no types
        return "" if code is None else "".join(self.node(node) for node in code.nodes)

    def node(self, node: Any) -> str:  # noqa: ANN401
        match type(node).__name__:
            case "Text":
                return _QUOTES.sub(r"\1", _SWITCH.sub("", str(node.value)))
            case "HTMLEntity":  # browsers read half a surrogate pair as U+FFFD too
                return _CONTROL.sub("", html.unescape(str(node)))
            case "Wikilink":
                shown = self.site.link_text(str(node.title))
                if shown is None:
                    return ""
                shown = self.text(node.text) if str(node.text or "").strip() else shown
                return shown if "<" not in shown and "{{" not in shown else self.text(node.title)
            case "ExternalLink":
                return self.text(node.title) if node.brackets else str(node.url)
            case "Template":
                shown = render(str(node.name), Arguments(node, self.text))
                return _REMOVED if shown is None else shown
            case "Heading":
                return f"\n{self.text(node.title)}\n"
            case "Tag":
                return self.tag(node)
            case _:  # comments, and the arguments of templates
                return ""

    def tag(self, node: Any) -> str:  # noqa: ANN401
        name = str(node.tag).strip().lower()
        if name in _LEFT_OUT:
            return ""
        if name in {"br", "hr"}:
            return "\n"
        if name == "li" and node.wiki_markup:
            return "- "
        if name in {"sup", "sub"}:
            inner = self.text(node.contents)
            return f"{SUP if name == 'sup' else SUB}{inner}{END}" if inner.strip(f" \n{_REMOVED}") else ""
        inner = str(node.contents or "") if name in VERBATIM else self.text(node.contents)
        if name in {"nowiki", "pre"}:
            inner = _CONTROL.sub("", html.unescape(inner))
        return f"\n{inner}\n" if name in _BLOCKS and not node.wiki_markup else inner


def _tidy(text: str) -> str:
    text = resolve_scripts(re.sub(rf"(?<=\d){FRACTION}", " ", text).replace(FRACTION, ""))
    if _REMOVED in text:
        text = _CLOSING.sub(")", _OPENING.sub("(", _NOTHING.sub("", text))).replace(_REMOVED, "")
    text = _LINE_OF_SWITCHES.sub("", _OTHER_SWITCH.sub("", text))
    lines = (_SPACE.sub(" ", line).strip() for line in text.replace("\xa0", " ").split("\n"))
    kept = "\n".join("" if line.strip("-*• ") == "" else line for line in lines)
    return _BLANK_LINES.sub("\n\n", kept).strip()
