"""Licences: identifiers from URLs, names and sentences; the doubtful ones are stricter or unknown."""

import tarfile
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lxml import etree

from meditron.sources.licences import (
    COMMERCIAL,
    combined_statement,
    creative_commons_link,
    is_allowed,
    licence_id,
)

PARSER = etree.XMLParser(remove_comments=True, remove_pis=True, no_network=True)
STATEMENTS = {
    "CCBY": "CC-BY",
    "CCBYNCND": "CC-BY-NC-ND",
    "CCBYNCSA": "CC-BY-NC-SA",
    "publicdomain": "LicenseRef-Public-Domain",
    "https://creativecommons.org/licenses/by/4.0/": "CC-BY-4.0",
    "http://creativecommons.org/licenses/by-nc-nd/3.0/igo": "CC-BY-NC-ND-3.0",
    "http://creativecommons.org/licenses/by/3/": "CC-BY-3.0",
    "creativecommons.org/licenses/by-sa/2.5": "CC-BY-SA-2.5",
    "https://creativecommons.org/publicdomain/zero/1.0/": "CC0-1.0",
    "http://creativecommons.org/publicdomain/mark/1.0/": "CC-PDM-1.0",
    "CC BY": "CC-BY",
    "CC BY-NC": "CC-BY-NC",
    "CC BY-NC-SA 4.0": "CC-BY-NC-SA-4.0",
    "cc-by-4.0": "CC-BY-4.0",
    "CC-BY-NC-ND": "CC-BY-NC-ND",
    "CC BY-ND 4.0": "CC-BY-ND-4.0",
    "CC0": "CC0-1.0",
    "CC BY-SA and GFDL": "CC-BY-SA",
    "https://creativecommons.org/licenses/by/4.0/deed.en": "CC-BY-4.0",
    "Creative Commons Attribution and ShareAlike 4.0": "CC-BY-SA-4.0",
    "Creative Commons Attribution, Non-Commercial and Share-Alike licence": "CC-BY-NC-SA",
    "NO-CC CODE": None,
    "Creative Commons Attribution 4.0 International License": "CC-BY-4.0",
    "Creative Commons Attribution-NonCommercial-NoDerivs 3.0 Unported": "CC-BY-NC-ND-3.0",
    "Creative Commons Attribution-Noncommercial-Share Alike 3.0": "CC-BY-NC-SA-3.0",
    "This is an open access article distributed under the terms of the Creative Commons Attribution License, "
    "which permits unrestricted use, distribution, and reproduction in any medium.": "CC-BY",
    # The name and the URL contradict each other, as in real articles: the stricter one counts.
    "http://creativecommons.org/licenses/by/3.0 licensed under a Creative Commons "
    "Attribution-NonCommercial 3.0 Unported License": "CC-BY-NC-3.0",
    "Creative Commons Attribution License (CC BY 4.0), for non-commercial use only": "CC-BY-NC-4.0",
    "CC BY 4.0, which permits commercial and non-commercial use": "CC-BY-4.0",
    # BioMed Central: the article is CC BY, its data CC0.
    "under the Creative Commons Attribution 4.0 International License "
    "(http://creativecommons.org/licenses/by/4.0/). The Creative Commons Public Domain Dedication waiver "
    "(http://creativecommons.org/publicdomain/zero/1.0/) applies to the data": "CC-BY-4.0",
    # Third-party material is excepted, the licence stays.
    "licensed under a Creative Commons Attribution 4.0 International License. If the material is not "
    "included under the Creative Commons license, users need permission": "CC-BY-4.0",
    # Hyphens of other kinds: en dash, U+2010 of Wiley's statements, no-break hyphen, underscore.
    "CC BY–NC": "CC-BY-NC",
    "CC‑BY‑NC‑ND 4.0": "CC-BY-NC-ND-4.0",
    "CC_BY_NC": "CC-BY-NC",
    "ＣＣ ＢＹ-ＮＣ": "CC-BY-NC",
    "Creative Commons Attribution‐NoDerivs License": "CC-BY-ND",
    "Creative Commons Attribution‐NonCommercial‐NoDerivs License, which permits use in any medium, provided "
    "the use is non‐commercial": "CC-BY-NC-ND",
    "CC BY N.C.": "CC-BY-NC",
    "CC BY N.C. N.D. 3.0": "CC-BY-NC-ND-3.0",
    # A stricter sentence beside the name.
    "CC BY with no commercial use": "CC-BY-NC",
    "not for commercial use, CC BY": "CC-BY-NC",
    "CC BY 4.0 (commercial use prohibited)": "CC-BY-NC-4.0",
    "CC BY 4.0. Commercial use is not permitted without a permission": "CC-BY-NC-4.0",
    "under the CC BY license. Commercial use requires permission": "CC-BY-NC",
    "CC BY; may not be used for commercial purposes": "CC-BY-NC",
    "CC BY. For commercial re-use, please contact the publisher": "CC-BY-NC",
    "CC BY 4.0, which permits any use, even commercially": "CC-BY-4.0",
    "CC BY 4.0. The authors declare no commercial or financial relationships": "CC-BY-4.0",
    "not CC BY": None,
    "no CC-BY": None,
    "not licensed under Creative Commons": None,
    "This article is not in the public domain": None,
    "Publication of EHP lies in the public domain": "LicenseRef-Public-Domain",
    "This is a work of the U.S. Government": "LicenseRef-US-Government-Work",
    "US government work": "LicenseRef-US-Government-Work",
    "Apache License, Version 2.0": "Apache-2.0",
    "apache-2.0": "Apache-2.0",
    "MIT": "MIT",
    "The MIT License": "MIT",
    "data from MIT": None,
    "BSD 3-Clause": "BSD-3-Clause",
    "ODC-BY": "ODC-By-1.0",
    "Open Data Commons Open Database License (ODbL)": "ODbL-1.0",
    "PDDL": "PDDL-1.0",
    "http://www.nationalarchives.gov.uk/doc/open-government-licence/version/3/": "OGL-UK-3.0",
    "© 2019 Elsevier Ltd. All rights reserved.": None,
    "NLM terms and conditions; single abstracts may be under their publishers' copyright": None,
    "": None,
    "  ": None,
}


@pytest.mark.parametrize(("statement", "identifier"), STATEMENTS.items())
def test_statements(statement: str, identifier: str | None) -> None:
    assert licence_id(statement) == identifier
    assert licence_id(f"  {statement}\n") == identifier


def test_every_identifier_is_its_own_statement() -> None:
    named = {*filter(None, STATEMENTS.values()), *COMMERCIAL}
    assert {name: licence_id(name) for name in named} == {name: name for name in named}


def test_commercial_use() -> None:
    assert is_allowed("CC-BY-4.0", COMMERCIAL)
    assert is_allowed("CC-BY", COMMERCIAL)
    assert is_allowed("CC-BY-SA-3.0", COMMERCIAL)
    assert is_allowed("LicenseRef-US-Government-Work", COMMERCIAL)
    for name in ("CC-BY-NC-4.0", "CC-BY-NC", "CC-BY-ND-4.0", "CC-BY-NC-SA-3.0", "GPL-3.0"):
        assert not is_allowed(name, COMMERCIAL)
    assert is_allowed("CC-BY-4.0", {"CC-BY"})
    assert not is_allowed("CC-BY", {"CC-BY-4.0"})
    assert not is_allowed("CC-BY-3.0", {"CC-BY-4.0"})


@pytest.mark.parametrize(
    ("text", "link"),
    [
        ("under http://www.creativecommons.org/licenses/by/2.0.", "licenses/by/2.0/"),
        ("(CreativeCommons.org/licenses/BY-NC/3.0/igo/)", "licenses/by-nc/3.0/igo/"),
        ("https://creativecommons.org/licenses/by/4.0/deed.en", "licenses/by/4.0/"),
        ("https://creativecommons.org/licenses/by/4.0/legalcode", "licenses/by/4.0/"),
        ("//creativecommons.org/publicdomain/zero/1.0/", "publicdomain/zero/1.0/"),
        ("https://creativecommons.org/licenses/publicdomain/", "licenses/publicdomain/"),
        ("https://creativecommons.org/about", None),
    ],
)
def test_links(text: str, link: str | None) -> None:
    assert creative_commons_link(text) == (link and f"https://creativecommons.org/{link}")


def test_several_statements_of_one_document() -> None:
    link, terms = "http://creativecommons.org/licenses/by/3.0/", "https://example.org/terms"
    same, stricter = "the Creative Commons Attribution License", "CC BY, for non-commercial use"
    assert combined_statement([link, same]) == link
    assert combined_statement([None, "", terms, link]) == link
    assert combined_statement([link, stricter]) == f"{link} {stricter}"
    assert combined_statement([link, f"{stricter} ({link})"]) == f"{stricter} ({link})"
    assert combined_statement([terms, "All rights reserved"]) == terms
    assert combined_statement([]) is None


@given(st.text(max_size=60))
def test_any_text(text: str) -> None:
    identifier = licence_id(text)
    assert identifier is None or licence_id(identifier) == identifier


@pytest.mark.shared
def test_the_licences_of_real_articles(shared: Path) -> None:
    counts: Counter[str | None] = Counter()
    link = "{http://www.w3.org/1999/xlink}href"
    for path in sorted((shared / "data/pmc-jats").glob("evidence-inference*.tar.gz")):
        with tarfile.open(path) as archive:
            for member in archive:
                file = archive.extractfile(member)
                licence = file and etree.parse(file, PARSER).find(".//permissions/license")
                if licence is not None:
                    links = [element.get(link, "") for element in licence.iter()]
                    counts[licence_id(" ".join([*links, *licence.itertext("*")]))] += 1
    # The folder was selected by hand for CC BY; a few of its articles are CC BY-NC by their own words.
    known = sum(count for name, count in counts.items() if name and is_allowed(name, COMMERCIAL))
    assert known >= 0.98 * sum(counts.values())
