"""A finished run's folder without the work: manifests that chain and records, but no weights.

Every figure is drawn from a seed, so two runs share a figure only by chance.
"""

import json
import math
import random
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from meditron.store.manifest import (
    Artifact,
    Git,
    InputRecord,
    Manifest,
    fingerprint,
    read_manifest,
    record_files,
    write_manifest,
)
from meditron.store.results import (
    Accuracy,
    Baseline,
    Comparison,
    EvaluationResult,
    Fidelity,
    Perplexity,
    TaskScore,
    write_results,
)
from meditron.store.rubric_results import HumanAgreement, JudgeRecord, RubricScore
from meditron.tasks.prompt_template import PROMPT_TEMPLATES

BASE = "pypi:a-model==0.1.2#model.gguf@sha256:" + "c" * 64
MODELS = ("base", "pretrain", "finetune", "quantize:Q4_K_M")
SOURCES = {"pubmed": "medical", "wiki": "general"}
TASK = "pubmed-sections"


class FakeRun:
    """Finished stages from corpus to evaluate under `folder`, which has the run's name."""

    def __init__(self, folder: Path, seed: int = 1) -> None:
        self.folder, self.random = folder, random.Random(seed)
        self._corpus()
        self._tokenized()
        self._training("pretrain", {"tokens": self.count(), "learning_rate": self.share()}, base=BASE)
        rows = {split: self.count() for split in ("train", "heldout", "too-long")}
        task = {
            "name": TASK,
            "version": 1,
            "template": {"name": "sections", "version": 1},
            "licence": "NLM's",
        }
        config = {"task": TASK, "template": "none", "limit": self.count()}
        self._training("finetune", config, base="pretrain", rows=rows, task=task)
        self._quantized()
        self.result = self._result()
        self._finish_evaluation()

    def set_rubric_score(self, score: float) -> None:
        """Give the finetuned model a score of a set of rubrics, and finish the evaluation again."""
        interval = (score - 0.05, score + 0.05)
        judge = JudgeRecord(
            name="judge-8b",
            digest="d" * 64,
            engine="torch",
            dtype="float32",
            identity={},
            form="raw",
            prompt="judge-prompt/1",
            prompt_sha256="e" * 64,
            temperature=0,
            retry_temperature=0.7,
            max_tokens=512,
            attempts=3,
            seed=1,
        )
        human = HumanAgreement(
            labels="people.csv",
            labels_sha256="f" * 64,
            criteria=0,
            tied=0,
            unused=0,
            raters_alpha=None,
            comparisons=(),
            labelled_conversations=0,
            corrected_score=None,
            corrected_interval=None,
        )
        rubric_score = RubricScore(
            model="finetune",
            rubrics="hb",
            data="hb.jsonl",
            rubrics_sha256="a" * 64,
            rows_sha256="b" * 64,
            prompt_sha256="c" * 64,
            score=score,
            interval=interval,
            mean=score,
            bounds=interval,
            n=40,
            unscored=0,
            clusters=40,
            criteria=400,
            missing=0,
            tied=0,
            met_rate=score,
            groups=(),
            judges=(judge,),
            aggregate="majority",
            judge_scores=(),
            human_agreement=human,
            engine="torch",
            dtype="float32",
            prompt_form="raw",
            temperature=0,
            max_tokens=256,
            seed=1,
            unfinished=0,
            answers="rubrics-hb.answers.jsonl",
            judgements="rubrics-hb.judgements.jsonl",
            page="rubrics-hb.html",
        )
        self.result = self.result.model_copy(update={"rubrics": {"finetune": {"hb": rubric_score}}})
        self._finish_evaluation()

    def _finish_evaluation(self) -> None:
        write_results(self.stage_folder("evaluate"), self.result)
        models = {model: BASE if model == "base" else model for model in MODELS}
        self.finish(
            "evaluate", inputs=models | {"corpus": "corpus"}, metrics=self.result.model_dump(mode="json")
        )

    def count(self) -> int:
        return self.random.randint(100_000, 999_999)

    def share(self) -> float:
        return self.random.uniform(0.01, 0.09)

    def stage_folder(self, name: str) -> Path:
        place = self.folder / name
        place.mkdir(parents=True, exist_ok=True)
        return place

    def manifest(self, name: str) -> Manifest:
        manifest = read_manifest(self.folder / name)
        assert manifest is not None
        return manifest

    def artifact(self, name: str) -> Artifact:
        manifest = self.manifest(name)
        return Artifact(name, self.folder / name, manifest.digest, manifest)

    def finish(self, name: str, *, inputs: dict[str, str], **fields: Any) -> None:
        """Write a stage's manifest, as the recipe does, with its inputs' current digests."""
        config = fields.pop("config", {})
        metrics = {"seconds": self.random.uniform(100, 999), "attempts": 1} | fields.pop("metrics", {})
        records = {key: self._input(reference) for key, reference in inputs.items()}
        payload = {"kind": name, "config": config, "inputs": {key: r.digest for key, r in records.items()}}
        started = datetime(2000 + self.random.randint(100, 900), 3, 4, tzinfo=UTC)
        defaults: dict[str, Any] = {
            "kind": name,
            "name": name,
            "fingerprint": fingerprint(payload),
            "payload": payload,
            "config": config,
            "inputs": records,
            "files": record_files(self.stage_folder(name)),
            "metrics": metrics,
            "git": Git(commit=f"{self.random.getrandbits(160):040x}"),
            "libraries": {"meditron": "0.1.0", "torch": f"{self.count()}.0"},
            "machine": {
                "cpu": "A <CPU> | more",
                "cpu_class": "avx2",
                "cores": self.random.randint(100, 999),
                "memory_bytes": self.random.randint(10**11, 10**12),
                "gpus": [],
            },
            "started": started,
            "ended": started + timedelta(seconds=metrics["seconds"]),
        }
        write_manifest(self.folder / name, Manifest(**(defaults | fields)))

    def _input(self, reference: str) -> InputRecord:
        below = read_manifest(self.folder / reference.partition(":")[0])
        return InputRecord(reference=reference, digest=below.digest if below else "c" * 64)

    def _corpus(self) -> None:
        self.stage_folder("corpus").joinpath("drops.jsonl").write_text("{}\n")
        counts = ("read", "kept", "train", "heldout")
        sources = {
            name: {key: self.count() for key in counts}
            | {
                "dropped": {"too short": self.count(), "not <English> | other": self.count()},
                "skipped": {},
            }
            for name in SOURCES
        }
        tables = {name: {"from": f"{name}.xml.gz", "domain": about} for name, about in SOURCES.items()}
        self.finish(
            "corpus",
            inputs={name: f"{name}.xml.gz" for name in SOURCES},
            config={"sources": tables, "languages": ["en"]},
            metrics={"sources": sources},
            licences={"pubmed": "NLM terms & conditions; see <NLM>"},
        )

    def _tokenized(self) -> None:
        metrics = {"sources": {name: {"tokens": self.count(), "documents": self.count()} for name in SOURCES}}
        self.finish("tokenize", inputs={"base": BASE, "corpus": "corpus"}, metrics=metrics)

    def _training(self, name: str, config: dict[str, Any], *, base: str, **extra_metrics: Any) -> None:
        self.stage_folder(name).joinpath("config.json").write_text('{"model_type": "mistral"}')
        self.stage_folder(name).joinpath("model.safetensors").write_bytes(self.random.randbytes(20))
        metrics = {
            "tokens": self.count(),
            "steps": self.count(),
            "loss": self.random.uniform(1, 9),
        }
        inputs = {"base": base, "tokens": "tokenize", "corpus": "corpus"}
        self.finish(name, inputs=inputs, config=config, metrics=metrics | extra_metrics)

    def _quantized(self) -> None:
        files = []
        for kind in ("F16", "Q8_0", "Q4_K_M"):
            self.stage_folder("quantize").joinpath(f"{kind}.gguf").write_bytes(self.random.randbytes(30))
            fallbacks = (
                {"blk.0.ffn_down.weight": "Q6_K", "token_embd.weight": "Q8_0"} if kind[-1] == "M" else {}
            )
            weights = {"bytes": self.random.randint(10**8, 10**9), "bpw": self.random.uniform(3, 16)}
            files.append({"path": f"{kind}.gguf", "type": kind, "fallbacks": fallbacks} | weights)
        self.finish("quantize", inputs={"model": "finetune"}, metrics={"files": files})

    def _result(self) -> EvaluationResult:
        shares = {model: self._score(model) for model in MODELS}
        return EvaluationResult(
            perplexity={m: {s: self._perplexity(m, s) for s in SOURCES} for m in MODELS},
            tasks={model: {TASK: score} for model, score in shares.items()},
            baselines={TASK: {n: self._baseline(n) for n in ("majority", "position", "naive Bayes")}},
            fidelity=[self._fidelity()],
            differences=[*self._differences()],
            rows="perplexity.jsonl",
            dtype="float32",
            seed=self.count(),
            resamples=self.count(),
        )

    def _perplexity(self, model: str, source: str) -> Perplexity:
        value = self.random.uniform(11, 99)
        return Perplexity(
            model=model,
            source=source,
            documents=self.count(),
            tokens=self.count(),
            nll=math.log(value),
            perplexity=value,
            interval=(value * 0.93, value * 1.07),
            bits_per_byte=self.random.uniform(0.5, 2),
            truncated=0,
            data_sha256=f"{self.random.getrandbits(256):064x}",
        )

    def _accuracy(self) -> dict[str, Any]:
        share = self.random.uniform(0.2, 0.8)
        return {
            "accuracy": share,
            "interval": (share * 0.93, share * 1.07),
            "macro_f1": self.random.uniform(0.2, 0.8),
        }

    def _score(self, model: str) -> TaskScore:
        rules = {rule: Accuracy(**self._accuracy()) for rule in ("sum", "bytes", "calibrated")}
        return TaskScore(
            **rules["sum"].model_dump(),
            model=model,
            task=TASK,
            version=1,
            template="sections/1",
            example_prompt=PROMPT_TEMPLATES["sections"].example(),
            data=TASK,
            split="heldout",
            prompt_form="raw",
            method="loglikelihood",
            dtype="float32",
            engine="torch",
            shots=0,
            n=self.count(),
            rule="sum",
            rules=rules,
            parse_rate=1,
            option_probability_mass=self.random.uniform(0.2, 0.8),
            prompt_sha256="1" * 64,
            data_sha256="2" * 64,
            rows=f"{TASK}.jsonl",
        )

    def _baseline(self, name: Any) -> Baseline:
        known = {k: v for k, v in self._accuracy().items() if k != "macro_f1"}
        trained = self.count() if name == "naive Bayes" else None
        return Baseline(task=TASK, name=name, n=self.count(), trained_on=trained, **known)

    def _differences(self) -> list[Comparison]:
        pairs = [(MODELS[0], later) for later in MODELS[1:]]
        texts = [self._comparison(a, b, source=source) for a, b in pairs for source in SOURCES]
        pairs += [("pretrain", "finetune"), ("base (calibrated)", "finetune"), ("naive Bayes", "finetune")]
        return texts + [self._comparison(a, b, task=TASK) for a, b in pairs]

    def _comparison(self, a: str, b: str, **of: str) -> Comparison:
        value = self.random.choice([-1, 1]) * self.random.uniform(0.1, 0.4)
        what = f"accuracy, {of['task']}" if "task" in of else f"nll per token, {of['source']}"
        return Comparison(
            a=a,
            b=b,
            what=what,
            n=self.count(),
            difference=value,
            interval=(value - 0.05, value + 0.05),
            p=self.random.uniform(1e-5, 8e-5),
            detectable=self.share(),
            **of,
        )

    def _fidelity(self) -> Fidelity:
        ends = {name: (self.share(), self.random.uniform(0.1, 0.9)) for name in ("kl_mean", "top_agreement")}
        return Fidelity(
            model="quantize:Q4_K_M",
            against="finetune",
            source="pubmed",
            documents=self.count(),
            n_tokens=self.count(),
            perplexity=self.random.uniform(11, 99),
            perplexity_against=self.random.uniform(11, 99),
            kl_mean=self.share(),
            kl_99=self.random.uniform(0.1, 0.9),
            top_agreement=self.random.uniform(0.1, 0.9),
            intervals=ends | {"perplexity_ratio": (self.random.uniform(1, 2), self.random.uniform(2, 3))},
            perplexity_ratio=self.random.uniform(1, 2),
            data_sha256="3" * 64,
        )


def of_few(result: EvaluationResult) -> EvaluationResult:
    """Return the result with four documents and questions each, too few for intervals."""

    def few(value: Any, key: str = "") -> Any:
        if key in ("interval", "detectable"):
            return None
        if key in ("n", "documents"):
            return 4
        if isinstance(value, dict):
            return {k: None if key == "intervals" else few(v, k) for k, v in value.items()}
        return [few(v) for v in value] if isinstance(value, list) else value

    return EvaluationResult.model_validate_json(json.dumps(few(result.model_dump(mode="json"))))
