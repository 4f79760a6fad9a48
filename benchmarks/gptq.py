"""The fidelity of GPTQ and AWQ folders to their model, over bits, group size and act-order.

    python -m benchmarks.gptq --model smollm2 --shared ../shared
    python -m benchmarks.gptq --model smollm2 --shared ../shared --type GPTQ-4bit-32g --type AWQ-4bit-32g

Needs the extras `gptq` and `release`, and PubMed abstracts (`data/pubmed-medline-xml` of the shared folder).
The calibration text and the held-out documents are different abstracts of one file. Every type is written as
`meditron quantize` writes it, and measured as `meditron evaluate FOLDER --against MODEL` does, in torch and
float32. Q4_K_M and Q8_0 are measured beside them. One line per type: KL divergence (mean and 99th percentile,
nats per token), agreement of the most probable token, ratio of perplexities, with 95 % intervals over
documents; seconds of the quantization and its largest resident memory.
"""

import argparse
import tempfile
import time
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import zstandard

from benchmarks.common import record
from meditron.corpus.clean import render_document
from meditron.evaluate.config import EvalOptions
from meditron.evaluate.standalone import evaluate_against
from meditron.release.packed import plan_packed, write_packed
from meditron.release.packed_types import is_packed_type, parse_packed_type
from meditron.release.quantize import QuantizeOptions, quantize
from meditron.release.types import parse_gguf_type
from meditron.report.terminal import print_table
from meditron.sources.registry import open_source
from meditron.store.files import make_folder
from meditron.store.jsonl import encode_row
from meditron.store.results import Fidelity

_ABSTRACTS = "data/pubmed-medline-xml/pubmed20n0014.part1of3.xml.gz"
_MIN_CHARACTERS = 800
GRID = (
    *(f"GPTQ-{bits}bit{group}{order}" for bits in (4, 8, 3) for group in ("-32g", "-64g", "")
      for order in ("", "-actorder")),
    "AWQ-4bit-32g", "AWQ-4bit-64g", "Q4_K_M", "Q8_0",
)  # fmt: skip
_HEADERS = ("type", "bits per weight", "KL mean", "KL 99 %", "same top token", "perplexity ratio", "s", "GB")


def write_texts(shared: Path, folder: Path, calibration: int, heldout: int) -> tuple[Path, Path]:
    """Write a calibration text and a corpus of held-out documents, which share no abstract."""
    texts = (render_document(document)[0] for document in open_source(shared / _ABSTRACTS))
    long = list(islice((text for text in texts if len(text) >= _MIN_CHARACTERS), calibration + heldout))
    text = folder / "calibration.txt"
    text.write_text("\n\n".join(long[heldout:]), encoding="utf-8")
    shard = make_folder(folder / "corpus/heldout/pubmed") / "0.jsonl.zst"
    rows = b"".join(encode_row({"id": str(i), "text": text}) for i, text in enumerate(long[:heldout]))
    shard.write_bytes(zstandard.compress(rows))
    return text, folder / "corpus"


def write_type(model: str, kind: str, text: Path, out: Path) -> tuple[dict[str, Any], float]:
    """Write one type; return its description, and the seconds."""
    started = time.monotonic()
    if is_packed_type(kind):
        result = write_packed(plan_packed(model, [parse_packed_type(kind)], out, text))
    else:
        result = quantize(model, [parse_gguf_type(kind)], out, QuantizeOptions())
    return {**result["files"][0], "peak_rss": result["peak_rss"]}, time.monotonic() - started


def measure(model: str, file: str, corpus: Path, out: Path, documents: int, tokens: int) -> Fidelity:
    """Measure the fidelity of one file to the model."""
    options = EvalOptions(fidelity_documents=documents, document_tokens=tokens)
    return evaluate_against(file, model, corpus, options, out=out)[0].fidelity[0]


def with_interval(fidelity: Fidelity, field: str) -> str:
    """Format a measure with its interval."""
    low, high = fidelity.intervals[field] or (float("nan"), float("nan"))
    return f"{getattr(fidelity, field):.4f} [{low:.4f}, {high:.4f}]"


def record_type(described: dict[str, Any], seconds: float, fidelity: Fidelity) -> Sequence[object]:
    """Record a line, and return the row of the table."""
    record(
        "gptq",
        f"fidelity-{described['type']}",
        ours=1 / fidelity.perplexity_ratio,
        peer=1.0,
        unit="perplexity of the model / perplexity of the type",
        bar=None,
        peer_name="the model that is not quantized",
        fidelity=fidelity.model_dump(mode="json"),
        bpw=described["bpw"],
        bytes=described["bytes"],
        seconds=round(seconds, 1),
        peak_rss=described["peak_rss"],
    )
    return (
        described["type"],
        f"{described['bpw']:.2f}",
        with_interval(fidelity, "kl_mean"),
        f"{fidelity.kl_99:.3f}",
        with_interval(fidelity, "top_agreement"),
        with_interval(fidelity, "perplexity_ratio"),
        f"{seconds:.0f}",
        f"{described['peak_rss'] / 1e9:.1f}",
    )


def main() -> None:
    """Measure the types of the grid, one after another."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, help="a MODEL with rows that are multiples of 32")
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    parser.add_argument("--type", action="append", help="repeatable; default: the grid")
    parser.add_argument("--calibration", type=int, default=40, help="abstracts of the calibration text")
    parser.add_argument("--heldout", type=int, default=30, help="held-out abstracts")
    parser.add_argument("--tokens", type=int, default=256, help="tokens of a held-out abstract, at most")
    parser.add_argument("--folder", type=Path, help="keep the files here; default: a temporary folder")
    arguments = parser.parse_args()
    if not (arguments.shared / _ABSTRACTS).is_file():
        print(f"skipped: {arguments.shared / _ABSTRACTS} is not there")
        return
    with tempfile.TemporaryDirectory(prefix="meditron-gptq-") as temporary:
        folder = make_folder(arguments.folder or Path(temporary))
        text, corpus = write_texts(arguments.shared, folder, arguments.calibration, arguments.heldout)
        rows = []
        for kind in arguments.type or GRID:
            described, seconds = write_type(arguments.model, kind, text, folder / "files")
            fidelity = measure(
                arguments.model,
                described["path"],
                corpus,
                folder / "rows",
                arguments.heldout,
                arguments.tokens,
            )
            rows.append(record_type(described, seconds, fidelity))
        print_table(_HEADERS, rows, title=f"{arguments.heldout} held-out abstracts", answer=True)


if __name__ == "__main__":
    main()
