"""The export check: it passes what is right, and refuses every export whose mending is taken out."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.text.test_hf_folder import sentencepiece_like

from meditron.core.errors import InputError
from meditron.model import gguf_layout, gguf_shape, gguf_weights, hf_config, hf_weights
from meditron.model.config import LlamaConfig, llama3_rope_divisors
from meditron.model.weight_rows import WeightRows, load_config
from meditron.model.weights import load_model
from meditron.release import check as release_check
from meditron.release import one_pass
from meditron.release import quantize as release_quantize
from meditron.release.check import CHECK_KEY, TOLERANCES, ExportError
from meditron.release.check_files import special_token_differences
from meditron.release.convert import convert
from meditron.release.quantize import QuantizeOptions, quantize
from meditron.store.ancestry import Training, read_ancestry, untrained_ancestry, write_ancestry
from meditron.store.authorship import read_authorship
from meditron.store.files import read_json, write_json
from meditron.store.gguf import GGUF, LazyTensor, write_gguf
from meditron.store.models import ModelFiles, resolve_model
from meditron.text.tokenizer import load_tokenizer
from tiny import CHAT, tiny_hf

Patch = pytest.MonkeyPatch
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def edit(path: Path, **changes: Any) -> None:
    write_json(path, read_json(path) | changes)


def rewritten(source: Path, target: Path, changes: dict[str, Any], drop: tuple[str, ...] = ()) -> Path:
    """A GGUF file of F32 tensors with other metadata."""
    with GGUF(source) as gguf:
        metadata = {key: value for key, value in gguf.metadata.items() if key not in drop} | changes
        tensors = [
            (name, LazyTensor(info.shape, "F32", lambda name=name: gguf.dequantize(name)))
            for name, info in gguf.tensors.items()
        ]
        write_gguf(target, metadata, tensors)
    return target


@pytest.fixture
def chat(tmp_path: Path) -> Path:
    """A model with control tokens, a chat template and two stop ids."""
    folder = tiny_hf(tmp_path / "chat", control=CHAT)
    edit(folder / "tokenizer_config.json", chat_template=TEMPLATE)
    edit(folder / "generation_config.json", eos_token_id=[0, 5])
    return folder


@pytest.fixture
def copy(tiny: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny, tmp_path / "copy"))


def refused(source: Path, out: Path, words: str, **options: Any) -> None:
    """The export is refused for this cause, and nothing of it remains."""
    before = sorted(out.parent.iterdir())
    with pytest.raises(ExportError, match=words) as caught:
        convert(str(source), out, **options)
    assert "--no-check" in str(caught.value.hint)
    assert "\n" not in caught.value.message
    assert sorted(out.parent.iterdir()) == before
    if out.suffix == ".gguf":
        before = sorted(out.parent.iterdir())
        with pytest.raises(ExportError, match=words):
            quantize(str(source), ["Q8_0"], out.parent)
        assert sorted(out.parent.iterdir()) == before


def metadata_without(monkeypatch: Patch, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Let the writer's vocabulary go through `change`."""
    real = gguf_layout.gguf_metadata
    monkeypatch.setattr(gguf_layout, "gguf_metadata", lambda *given: change(real(*given)))


def keep_row_order(monkeypatch: Patch) -> None:
    """Let both writers leave out the reordering of rows."""
    for module in (gguf_weights, one_pass):
        monkeypatch.setattr(module, "gguf_row_order", lambda *_: None)


class TestMutations:
    """Each mending taken out again: the check has to see it."""

    def test_a_head_that_differs_from_the_embedding_is_dropped(
        self, copy: Path, tmp_path: Path, monkeypatch: Patch
    ) -> None:
        edit(copy / "config.json", tie_word_embeddings=True)
        monkeypatch.setattr(hf_config, "has_untied_head", lambda folder: False)
        refused(copy, tmp_path / "x.gguf", r"lm_head\.weight of the source.*is missing")
        refused(copy, tmp_path / "x", r"lm_head\.weight of the source.*is missing")

    def test_added_tokens_become_text(self, chat: Path, tmp_path: Path, monkeypatch: Patch) -> None:
        def change(metadata: dict[str, Any]) -> dict[str, Any]:
            return metadata | {"tokenizer.ggml.token_type": [1] * len(metadata["tokenizer.ggml.tokens"])}

        metadata_without(monkeypatch, change)
        refused(chat, tmp_path / "x.gguf", "tokenizer|added token")

    def test_added_tokens_of_the_config_are_not_read(self, chat: Path, tmp_path: Path) -> None:
        """The reader's own fault: seen by the check that reads the files itself."""
        flags = {"special": True, "lstrip": False, "rstrip": False, "normalized": False}
        poorer = load_tokenizer(chat)
        decoder = {"400": {"content": "<|tool|>", **flags}}
        edit(chat / "tokenizer_config.json", added_tokens_decoder=decoder)
        found = list(special_token_differences(ModelFiles(str(chat), "hf", chat), poorer))
        assert found == ["added token '<|tool|>' (400) is None"]

    def test_stop_ids_are_dropped(self, chat: Path, tmp_path: Path, monkeypatch: Patch) -> None:
        def change(metadata: dict[str, Any]) -> dict[str, Any]:
            kept = ("bos_token_id", "eos_token_id", "padding_token_id", "unknown_token_id")
            return {
                key: value
                for key, value in metadata.items()
                if not key.endswith(("token_id", "token_ids")) or key.endswith(kept)
            } | {"tokenizer.ggml.eos_token_id": 0}

        metadata_without(monkeypatch, change)
        refused(chat, tmp_path / "x.gguf", "stop id 5")

    def test_the_template_is_dropped(self, chat: Path, tmp_path: Path, monkeypatch: Patch) -> None:
        metadata_without(monkeypatch, lambda metadata: metadata | {"tokenizer.chat_template": "{{ '' }}"})
        refused(chat, tmp_path / "x.gguf", "tokenizer: chat text")

    def test_another_pre_tokenizer_is_written(self, tiny: Path, tmp_path: Path, monkeypatch: Patch) -> None:
        """What `add_space_prefix` is to SentencePiece: the same vocabulary, cut otherwise."""
        metadata_without(monkeypatch, lambda metadata: metadata | {"tokenizer.ggml.pre": "llama-bpe"})
        refused(tiny, tmp_path / "x.gguf", "tokenizer: token ids of")

    def test_the_blank_before_a_text_is_dropped(self, copy: Path, tmp_path: Path, monkeypatch: Patch) -> None:
        """Llama-2's vocabulary in a file that does not put a blank before the text."""
        spec = sentencepiece_like()
        for added in spec["added_tokens"]:
            added["normalized"] = False
        names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
        (copy / "tokenizer.json").write_text(json.dumps(spec))
        (copy / "tokenizer_config.json").write_text(
            json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **names})
        )
        convert(str(copy), tmp_path / "same.gguf")
        without = {"tokenizer.ggml.add_space_prefix": False}
        metadata_without(monkeypatch, lambda metadata: metadata | without)
        refused(copy, tmp_path / "x.gguf", "tokenizer: token ids of")

    def test_a_key_that_changes_attention_is_ignored(
        self, tiny: Path, tmp_path: Path, monkeypatch: Patch
    ) -> None:
        convert(str(tiny), tmp_path / "plain.gguf", type="F32")
        source = rewritten(
            tmp_path / "plain.gguf", tmp_path / "source.gguf", {"llama.attention.causal": False}
        )
        monkeypatch.setattr(gguf_shape, "_refuse_unsupported_keys", lambda *_: None)
        (tmp_path / "out").mkdir()
        refused(source, tmp_path / "out" / "x.gguf", r"llama\.attention\.causal = False")
        refused(source, tmp_path / "out" / "x", r"llama\.attention\.causal = False")

    def test_the_attention_factor_is_dropped(self, copy: Path, tmp_path: Path, monkeypatch: Patch) -> None:
        scaling = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
        edit(copy / "config.json", rope_parameters={"rope_theta": 1e4, **scaling, "attention_factor": 1.5})
        real = LlamaConfig.to_gguf

        def without(config: LlamaConfig) -> dict[str, Any]:
            return {key: value for key, value in real(config).items() if not key.endswith("attn_factor")}

        with monkeypatch.context() as patch:
            patch.setattr(LlamaConfig, "to_gguf", without)
            refused(copy, tmp_path / "x.gguf", "attention_factor of the rotary scaling")
            # Without the comparison of keys the logits show it.
            patch.setattr(release_check, "source_file_differences", lambda *_: iter(()))
            refused(copy, tmp_path / "x.gguf", "logits differ by up to")
        convert(str(copy), tmp_path / "x.gguf")

    def test_value_length_is_missing(self, tiny: Path, tmp_path: Path, monkeypatch: Patch) -> None:
        source = wide_heads(tiny, tmp_path / "source")
        real = LlamaConfig.to_gguf

        def without(config: LlamaConfig) -> dict[str, Any]:
            return {key: value for key, value in real(config).items() if not key.endswith("value_length")}

        with monkeypatch.context() as patch:
            patch.setattr(LlamaConfig, "to_gguf", without)
            refused(source, tmp_path / "x.gguf", r"llama\.attention\.value_length is missing")
        convert(str(source), tmp_path / "x.gguf")

    def test_a_required_key_is_missing(self, tiny: Path, tmp_path: Path, monkeypatch: Patch) -> None:
        real = LlamaConfig.to_gguf

        def without(config: LlamaConfig) -> dict[str, Any]:
            return {key: value for key, value in real(config).items() if not key.endswith("rms_epsilon")}

        monkeypatch.setattr(LlamaConfig, "to_gguf", without)
        refused(tiny, tmp_path / "x.gguf", "layer_norm_rms_epsilon is missing")

    def test_rows_are_in_another_order(self, tiny: Path, tmp_path: Path, monkeypatch: Patch) -> None:
        keep_row_order(monkeypatch)
        refused(tiny, tmp_path / "x.gguf", r"self_attn\.q_proj\.weight")

    def test_a_weight_is_another(self, tiny: Path, tmp_path: Path, monkeypatch: Patch) -> None:
        real = hf_weights.HFWeights.__getitem__
        calls: list[str] = []

        def changed(weights: Any, name: str) -> torch.Tensor:
            calls.append(f"{weights._file[name]} {name}")
            weight = real(weights, name)
            writing = name.endswith("1.mlp.up_proj.weight") and len(calls) <= len(weights)
            return weight * 1.001 if writing else weight

        monkeypatch.setattr(hf_weights.HFWeights, "__getitem__", changed)
        with pytest.raises(ExportError, match=r"layers\.1\.mlp\.up_proj\.weight: value 0 is"):
            convert(str(tiny), tmp_path / "x", dtype="float32")

    @pytest.mark.parametrize("key", ["general.license", "meditron.ancestry"])
    def test_what_the_source_says_of_itself_is_dropped(
        self, copy: Path, tmp_path: Path, monkeypatch: Patch, key: str
    ) -> None:
        (copy / "README.md").write_text("---\nlicense: mit\n---\n")
        write_ancestry(copy, untrained_ancestry("base", "0" * 64))
        real = release_quantize.carried_metadata

        def without(*given: Any, **options: Any) -> dict[str, Any]:
            return {name: value for name, value in real(*given, **options).items() if name != key}

        monkeypatch.setattr(release_quantize, "carried_metadata", without)
        with pytest.raises(ExportError, match=r"general\.license|training data"):
            quantize(str(copy), ["F16"], tmp_path / "out")
        assert not list((tmp_path / "out").iterdir())


def wide_heads(tiny: Path, folder: Path) -> Path:
    """A model whose heads are wider than its width over their number."""
    from seeded import seeded_hf

    return seeded_hf(
        folder, tiny, seed=5, hidden_size=64, intermediate_size=64, num_hidden_layers=1,
        num_attention_heads=4, num_key_value_heads=2, head_dim=32,
    )  # fmt: skip


def test_heads_wider_than_the_model_open_in_llama_cpp(tiny: Path, tmp_path: Path) -> None:
    from llamacpp_each import continuations
    from meditron.model.generate import generate
    from meditron.model.sampling import SamplingConfig

    source = wide_heads(tiny, tmp_path / "source")
    made = [Path(file["path"]) for file in quantize(str(source), ["F32", "Q8_0"], tmp_path)["files"]]
    ours = list(generate(load_model(source), [5, 6, 7], SamplingConfig(max_tokens=4)))
    assert continuations(made, [5, 6, 7], 4)[0] == ours


def test_a_skipped_check_is_recorded(tiny: Path, tmp_path: Path) -> None:
    files = quantize(str(tiny), ["F16", "Q8_0"], tmp_path, QuantizeOptions(check=False))["files"]
    assert [file["check"] for file in files] == ["skipped", "skipped"]
    with GGUF(Path(files[0]["path"])) as gguf:
        assert gguf.metadata[CHECK_KEY] == "skipped"
    assert convert(str(tiny), tmp_path / "folder", check=False)["check"] == "skipped"
    assert read_json(tmp_path / "folder" / "config.json")[CHECK_KEY] == "skipped"
    # It is said of one file, not handed on to the next.
    again = convert(files[0]["path"], tmp_path / "again.gguf")
    assert again["check"] == "passed"
    made = quantize(str(tiny), ["Q8_0"], tmp_path, force=True)
    assert made["files"][0]["check"] == "passed"
    assert made["check_seconds"] > 0


@pytest.mark.parametrize("kind", sorted(TOLERANCES))
@pytest.mark.parametrize("shape", ["normal", "heavy", "uniform", "sparse"])
def test_no_quantizer_exceeds_its_tolerance(kind: str, shape: str) -> None:
    import libgguf
    from gguf.constants import GGMLQuantizationType

    if kind.startswith("IQ") and shape == "sparse":
        pytest.skip("the codebooks of IQ types have no zeros, and no published model has such rows")
    random = np.random.default_rng(7)
    values = {
        "normal": random.normal(size=(64, 1024)),
        "heavy": random.standard_t(2, size=(64, 1024)),
        "uniform": random.uniform(-1, 1, size=(64, 1024)),
        "sparse": random.normal(size=(64, 1024)) * (random.random((64, 1024)) < 0.05),
    }[shape].astype(np.float32)
    values[3] = 0
    code = GGMLQuantizationType[kind]
    decoded = libgguf.dequantize_rows(
        libgguf.quantize_rows(values, code, np.ones(1024, np.float32)), code, values.shape[1]
    )

    def differences(source: np.ndarray, written: np.ndarray) -> list[str]:
        rows = [WeightRows(each.shape, "F32", each, lambda stored: stored) for each in (source, written)]
        return list(release_check._weight_differences("w", rows[0], rows[1], kind))

    found = np.asarray(decoded).reshape(values.shape)
    assert not differences(values, found)
    assert differences(np.roll(values, 1, axis=0), found)
    if kind == "Q8_0":  # a twentieth off shows where the type is fine enough
        assert differences(values * np.float32(1.05), found)


class TestRecords:
    CARD = """---
license: apache-2.0
license_link: https://example.org/licence
author: "A. Böhm"
base_model: HuggingFaceTB/SmolLM2-135M
tags: [medical, "naïve"]
language: en
datasets:
- pubmed
model_name: Tiny
general.uuid: 12-34
---
# Tiny
Text.
"""

    def test_authorship_goes_to_gguf_and_back(self, copy: Path, tmp_path: Path) -> None:
        (copy / "README.md").write_text(self.CARD, encoding="utf-8")
        said = read_authorship(resolve_model(str(copy)))
        assert said["general.license"] == "apache-2.0"
        assert said["general.author"] == "A. Böhm"
        assert said["general.base_model.0.name"] == "SmolLM2-135M"
        assert said["general.base_model.0.organization"] == "HuggingFaceTB"
        assert said["general.tags"] == ["medical", "naïve"]
        assert said["general.uuid"] == "12-34"
        convert(str(copy), tmp_path / "a.gguf")
        made = quantize(str(tmp_path / "a.gguf"), ["Q8_0"], tmp_path)["files"][0]["path"]
        convert(made, tmp_path / "back")
        convert(str(tmp_path / "back"), tmp_path / "again.gguf")
        for place in (tmp_path / "a.gguf", made, tmp_path / "back", tmp_path / "again.gguf"):
            assert read_authorship(resolve_model(str(place))) == said, place
        front = (tmp_path / "back" / "README.md").read_text(encoding="utf-8")
        assert 'base_model: "HuggingFaceTB/SmolLM2-135M"' in front
        convert(str(copy), tmp_path / "folder")
        assert (tmp_path / "folder" / "README.md").read_text(encoding="utf-8") == self.CARD

    def test_training_data_goes_to_gguf_and_back(self, copy: Path, tmp_path: Path) -> None:
        training = Training(
            stage="finetune", kind="finetune", data="medqa", data_digest="1" * 64, questions=("0" * 16,)
        )
        record = untrained_ancestry("base", "0" * 64).with_training(training)
        write_ancestry(copy, record)
        made = quantize(str(copy), ["Q8_0"], tmp_path)["files"][0]["path"]
        convert(made, tmp_path / "b.gguf")
        convert(str(tmp_path / "b.gguf"), tmp_path / "back")
        for place in (made, tmp_path / "b.gguf", tmp_path / "back"):
            assert read_ancestry(resolve_model(str(place))) == record

    def test_a_card_that_is_not_yaml_is_one_line(self, copy: Path, tmp_path: Path) -> None:
        (copy / "README.md").write_text("---\na: [\n---\n")
        with pytest.raises(InputError, match=r"README\.md.*front matter is not YAML"):
            convert(str(copy), tmp_path / "x.gguf")
        (copy / "README.md").write_text("---\njust text\n---\n")
        convert(str(copy), tmp_path / "x.gguf")


class TestNothingHalfWritten:
    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_a_folder_of_broken_weights(self, copy: Path, tmp_path: Path, value: float) -> None:
        weights = load_file(copy / "model.safetensors")
        weights["model.layers.0.mlp.up_proj.weight"][0, 3] = value
        save_file(weights, copy / "model.safetensors")
        for out in (tmp_path / "x", tmp_path / "x.gguf"):
            with pytest.raises(Exception, match=r"layers\.0\.mlp\.up_proj\.weight contains NaN or infinity"):
                convert(str(copy), out)
        assert [file.name for file in tmp_path.iterdir()] == ["copy"]

    def test_a_replaced_folder_keeps_no_stale_file_of_the_old_model(self, tiny: Path, tmp_path: Path) -> None:
        out = tmp_path / "out"
        convert(str(tiny), out)
        for name in ("model.safetensors.index.json", "chat_template.jinja", "added_tokens.json"):
            (out / name).write_text("{}")
        (out / "notes.txt").write_text("mine")
        convert(str(tiny), out, force=True)
        names = {file.name for file in out.iterdir()}
        assert "notes.txt" in names
        assert not names & {"model.safetensors.index.json", "chat_template.jinja", "added_tokens.json"}
        assert json.loads((out / "config.json").read_text())["model_type"] == "llama"

    def test_a_failed_check_keeps_the_file_that_was_there(
        self, tiny: Path, tmp_path: Path, monkeypatch: Patch
    ) -> None:
        convert(str(tiny), tmp_path / "x.gguf")
        before = (tmp_path / "x.gguf").read_bytes()
        keep_row_order(monkeypatch)
        with pytest.raises(ExportError):
            convert(str(tiny), tmp_path / "x.gguf", force=True)
        assert (tmp_path / "x.gguf").read_bytes() == before


def test_llama3_scaling_of_any_context_goes_to_gguf_and_back(copy: Path, tmp_path: Path) -> None:
    for context, low, high, factor in ((4096, 1.0, 4.0, 8.0), (1024, 1.0, 2.0, 32.0), (8192, 1.0, 4.0, 8.0)):
        scaling = {
            "rope_type": "llama3",
            "factor": factor,
            "low_freq_factor": low,
            "high_freq_factor": high,
            "original_max_position_embeddings": context,
        }
        edit(copy / "config.json", rope_parameters={"rope_theta": 5e5, **scaling}, head_dim=8)
        convert(str(copy), tmp_path / "x.gguf", force=True)
        configs = (load_config(tmp_path / "x.gguf"), load_config(copy))
        found, wanted = (llama3_rope_divisors(c.rope_theta, c.head_dim, c.rope_scaling) for c in configs)
        assert found == pytest.approx(wanted, rel=1e-5)
