"""A description of a built corpus in Croissant 1.0 (Akhtar et al. 2024), the metadata format of data sets.

`croissant.json` lists each source and split as a set of files, with their fields, so that catalogues and
loaders know what the corpus contains. https://docs.mlcommons.org/croissant/docs/croissant-spec.html
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from meditron.core.disclaimer import DISCLAIMER
from meditron.corpus.tally import NOT_STATED
from meditron.sources.licences import licence_id
from meditron.store.files import write_json

__all__ = ["CROISSANT_FILE", "write_croissant"]

CROISSANT_FILE = "croissant.json"

_CONTEXT = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "cr": "http://mlcommons.org/croissant/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "extract": "cr:extract",
    "field": "cr:field",
    "fileObject": "cr:fileObject",
    "fileProperty": "cr:fileProperty",
    "fileSet": "cr:fileSet",
    "format": "cr:format",
    "includes": "cr:includes",
    "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath",
    "key": "cr:key",
    "md5": "cr:md5",
    "parentField": "cr:parentField",
    "path": "cr:path",
    "recordSet": "cr:recordSet",
    "references": "cr:references",
    "regex": "cr:regex",
    "repeated": "cr:repeated",
    "replace": "cr:replace",
    "sc": "https://schema.org/",
    "separator": "cr:separator",
    "source": "cr:source",
    "subField": "cr:subField",
    "transform": "cr:transform",
}
_FIELDS = {
    "id": "Id of the document: its source's own id, numbered if the source has it several times.",
    "source": "Name of the source.",
    "text": "The cleaned text.",
}


def write_croissant(sources: Mapping[str, Mapping[str, Any]], metrics: Mapping[str, Any], out: Path) -> None:
    """Write `croissant.json` of a finished corpus.

    Args:
        sources: The recipe's source tables.
        metrics: The stage's metrics.
        out: The stage's folder.
    """
    documents = metrics["documents"]
    parts = [
        (source, split)
        for source in sources
        for split in ("train", "heldout")
        if metrics["sources"][source][split]
    ]
    description: dict[str, Any] = {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        "name": "corpus",
        "description": f"Text for language models: {documents['train']:,} training and "
        f"{documents['heldout']:,} held-out documents of {', '.join(sources)}. {DISCLAIMER}",
        "license": _licences(sources, metrics["licences"]),
        "url": "https://github.com/epfLLM/meditron",
        "version": "1.0.0",
        "distribution": [_file_set(source, split) for source, split in parts],
        "recordSet": [_record_set(source, split) for source, split in parts],
    }
    if metrics.get("newest_date"):
        description["temporalCoverage"] = f"../{metrics['newest_date']}"
    write_json(out / CROISSANT_FILE, description)


def _licences(sources: Mapping[str, Mapping[str, Any]], stated: Mapping[str, Any]) -> list[str]:
    """Return the licences of the sources and those that the documents state, each once.

    Args:
        sources: The recipe's source tables.
        stated: Licence → counts of its documents, as `tally.merge_tallies` gives them.
    """
    of_sources = [table["licence"] for table in sources.values() if table.get("licence")]
    names = [
        *(licence_id(text) or text for text in of_sources),
        *(name for name in stated if name != NOT_STATED),
    ]
    return list(dict.fromkeys(names)) or [NOT_STATED]


def _file_set(source: str, split: str) -> dict[str, Any]:
    return {
        "@type": "cr:FileSet",
        "@id": f"{split}-{source}-files",
        "name": f"{split}-{source}-files",
        "description": f"Shards of the source {source}, split {split}: JSON lines compressed with Zstandard.",
        "encodingFormat": "application/jsonlines",
        "includes": f"{split}/{source}/*.jsonl.zst",
    }


def _record_set(source: str, split: str) -> dict[str, Any]:
    name = f"{split}-{source}"
    return {
        "@type": "cr:RecordSet",
        "@id": name,
        "name": name,
        "description": f"Documents of the source {source}, split {split}.",
        "field": [
            {
                "@type": "cr:Field",
                "@id": f"{name}/{column}",
                "name": column,
                "description": text,
                "dataType": "sc:Text",
                "source": {"fileSet": {"@id": f"{name}-files"}, "extract": {"column": column}},
            }
            for column, text in _FIELDS.items()
        ],
    }
