"""The importance matrix and `--target-size` against the standard files, by KL divergence on medical text.

    python -m benchmarks.imatrix ../shared/data

The model is SmolLM2-135M-Instruct, padded with zeros to rows of 768 values and to 12 heads, because its own
rows of 576 values are no whole blocks of K types. Its norms are scaled so that its predictions stay the same;
the largest difference of a log-probability is printed. The calibration text and the evaluated abstracts are
different citations of one file of PubMed. `KL` is the mean divergence from the unquantized model in nats per
token, in float32. Ratios are above 1 if ours is better. Rows:

- `imatrix-TYPE`: the file with an importance matrix against the file without.
- `target-size-TYPE`: the mix of `--target-size` at the size of the standard file, against that file. Both
  have the importance matrix.
"""

import argparse
import sys
import tempfile
from collections.abc import Mapping, Sequence
from itertools import islice
from math import sqrt
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.common import record
from meditron.model.config import LlamaConfig
from meditron.model.presets import PRESETS, model_tokenizer
from meditron.model.weights import load_model, open_weights, save_hf
from meditron.release.imatrix import compute_imatrix
from meditron.release.quantize import QuantizeOptions, quantize
from meditron.release.types import GGUFType
from meditron.sources.medline import read
from meditron.store.models import resolve_model

SOURCE = PRESETS["tiny"].tokenizer
"""SmolLM2-135M-Instruct."""
WIDTH, HEADS, SHARED_HEADS = 768, 12, 4
CITATIONS = "pubmed-medline-xml/pubmed20n0014.part1of3.xml.gz"
IMATRIX_TYPES: tuple[GGUFType, ...] = ("Q2_K",)
TARGETS: tuple[GGUFType, ...] = ("Q3_K_M", "Q4_K_S", "Q4_K_M")
IMATRIX_BAR, TARGET_BAR = 2.0, 1.0


def padded(weight: Tensor, rows: int, columns: int) -> Tensor:
    """Return a matrix with rows and columns of zeros appended."""
    return F.pad(weight, (0, columns - weight.shape[1], 0, rows - weight.shape[0]))


def padded_model(folder: Path) -> Path:
    """Write SmolLM2, padded, as an HF folder."""
    files = resolve_model(SOURCE)
    with open_weights(files) as (config, weights):
        scale = sqrt(
            config.hidden_size / WIDTH
        )  # a norm's mean has more terms now, and the new ones are zero
        changes = {
            "hidden_size": WIDTH,
            "num_attention_heads": HEADS,
            "num_key_value_heads": SHARED_HEADS,
            "rms_norm_eps": config.rms_norm_eps * scale**2,
        }
        wide = config.model_copy(update=changes)
        state = {name: _padded_weight(name, weight, wide, scale) for name, weight in weights.items()}
    save_hf(state, wide, model_tokenizer(files), folder, torch.float32)
    return folder


def _padded_weight(name: str, weight: Tensor, wide: LlamaConfig, scale: float) -> Tensor:
    if weight.dim() == 1:
        return F.pad(weight * scale, (0, WIDTH - len(weight)))
    heads = {"q_proj": wide.num_attention_heads, "k_proj": wide.num_key_value_heads}
    heads["v_proj"] = wide.num_key_value_heads
    kind = name.split(".")[-2]
    if kind in heads:
        return padded(weight, heads[kind] * wide.head_dim, WIDTH)
    if kind == "o_proj":
        return padded(weight, WIDTH, wide.num_attention_heads * wide.head_dim)
    if kind == "down_proj":
        return padded(weight, WIDTH, weight.shape[1])
    return padded(weight, weight.shape[0], WIDTH)


def abstracts(path: Path, count: int) -> list[str]:
    """Return title and abstract of the first citations with a long abstract."""
    whole = (
        "\n".join((document.title, *(section.text for section in document.sections)))
        for document in read(path)
    )
    return list(islice((text for text in whole if len(text) > 800), count))


class Reference:
    """The unquantized model's predictions on the evaluated texts."""

    def __init__(self, spec: str, texts: Sequence[str], tokens: int) -> None:
        tokenizer = model_tokenizer(resolve_model(spec))
        self.ids = [tokenizer.encode(text)[:tokens] for text in texts]
        self.log_probs = self.predict(spec)

    @torch.inference_mode()
    def predict(self, spec: str) -> list[Tensor]:
        """Return a model's log-probabilities of each text."""
        model = load_model(spec).eval()
        hidden = [model(torch.tensor([ids]))[0] for ids in self.ids]
        return [F.linear(text, model.head_weight).log_softmax(-1) for text in hidden]

    def divergence(self, path: str | Path) -> float:
        """Return the mean KL divergence of a file from the reference, in nats per token."""
        pairs = zip(self.predict(str(path)), self.log_probs, strict=True)
        sums = [float(F.kl_div(ours, true, log_target=True, reduction="sum")) for ours, true in pairs]
        return sum(sums) / sum(map(len, self.ids))


def compare(
    reference: Reference,
    name: str,
    ours: Mapping[str, object],
    peer: Mapping[str, object],
    bar: float,
    peer_name: str,
) -> None:
    """Record a row: the inverse divergences of two files."""
    divergences = [reference.divergence(cast("str", file["path"])) for file in (ours, peer)]
    record(
        "imatrix",
        name,
        ours=1 / divergences[0],
        peer=1 / divergences[1],
        unit="1 / KL (tokens per nat)",
        bar=bar,
        peer_name=peer_name,
        kl=[round(value, 5) for value in divergences],
        bytes=[ours["bytes"], peer["bytes"]],
    )


def measure(folder: Path, data: Path, chunks: int, documents: int, tokens: int) -> None:
    """Write the model and its files, and record the rows."""
    model = folder / "padded"
    if not (model / "config.json").is_file():
        padded_model(model)
    texts = abstracts(data / CITATIONS, documents + 1000)
    calibration = folder / "calibration.txt"
    calibration.write_text("\n\n".join(texts[documents:])[: chunks * 512 * 6], encoding="utf-8")
    reference = Reference(str(model), texts[:documents], tokens)
    pairs = zip(reference.predict(SOURCE), reference.log_probs, strict=True)
    print("largest difference by padding:", max(float((a - b).abs().max()) for a, b in pairs), flush=True)
    types = (*IMATRIX_TYPES, *TARGETS)
    imatrix = folder / "files" / "padded.imatrix"  # where `quantize --calibrate` looks for it
    imatrix.parent.mkdir(exist_ok=True)
    compute_imatrix(str(model), calibration, imatrix, max_chunks=chunks, force=True)
    plain = quantize(str(model), IMATRIX_TYPES, folder / "plain", QuantizeOptions(check=False), force=True)
    options = QuantizeOptions(imatrix=imatrix, check=False)
    weighted = quantize(str(model), types, folder / "files", options, force=True)
    files = {file["type"]: file for file in weighted["files"]}
    for file in plain["files"]:
        kind = file["type"]
        compare(reference, f"imatrix-{kind}", files[kind], file, IMATRIX_BAR, "without an importance matrix")
    for kind in TARGETS:
        options = QuantizeOptions(calibrate=calibration, target_size=str(files[kind]["bytes"]), check=False)
        (mixed,) = quantize(str(model), [], folder / "files", options, force=True)["files"]
        compare(reference, f"target-size-{kind}", mixed, files[kind], TARGET_BAR, f"{kind} of the same size")


def main() -> None:
    """Run the comparisons."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("--chunks", type=int, default=80, help="calibration chunks of 512 tokens")
    parser.add_argument("--documents", type=int, default=24)
    parser.add_argument("--tokens", type=int, default=256, help="tokens of a document at most")
    parser.add_argument("--folder", type=Path, help="keep the files here; default: a temporary folder")
    arguments = parser.parse_args()
    if not (arguments.data / CITATIONS).is_file():
        print(f"imatrix skipped: {arguments.data / CITATIONS} does not exist")
        sys.exit()
    with tempfile.TemporaryDirectory(prefix="meditron-imatrix-") as temporary:
        folder = arguments.folder or Path(temporary)
        folder.mkdir(exist_ok=True)
        measure(folder, arguments.data, arguments.chunks, arguments.documents, arguments.tokens)


if __name__ == "__main__":
    main()
