"""Export in the schema 0.3.0 of Every Eval Ever (github.com/evaleval/every_eval_ever).

An aggregate file `UUID.json` and the answers `UUID_samples.jsonl` lie in `data/COLLECTION/DEVELOPER/MODEL/`,
the folders of its datastore. The schema has no null for most settings: what is not known is left out.
"""

import hashlib
import json
import uuid
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path, PurePosixPath
from string import ascii_uppercase
from typing import Any

from meditron.core.errors import UsageError
from meditron.evaluate.exchange.exported import ExportedItem, ExportedTask, require_questions
from meditron.evaluate.methods.generated import GeneratedRow
from meditron.evaluate.rows import ImportedRow, QuestionRow
from meditron.store.files import sha256_file, write_json
from meditron.store.jsonl import JsonlWriter
from meditron.version import __version__

__all__ = ["SCHEMA_VERSION", "export_every_eval_ever"]

SCHEMA_VERSION = "0.3.0"


def export_every_eval_ever(
    tasks: Sequence[ExportedTask], out: Path, now: datetime, *, model_id: str, organization: str
) -> list[Path]:
    """Write one pair of files for each task.

    Args:
        tasks: The evaluations.
        out: The folder that gets `data/`.
        now: Time of the export.
        model_id: Name of the model on the hub, `developer/model`.
        organization: Name of the organization that ran the evaluation.

    Returns:
        The written files.

    Raises:
        UsageError: the questions are not known, or `model_id` is not `developer/model`.
    """
    developer, slash, model = model_id.partition("/")
    if not (developer and slash and model) or "/" in model:
        raise UsageError(
            f"the model's id must be developer/model, got {model_id!r}", hint="--model-id ORG/NAME"
        )
    for task in tasks:
        require_questions(task)
    paths: list[Path] = []
    for task in tasks:
        # The same evaluation gets the same id, so that a second export replaces the files of the first.
        seed = f"{model_id}\0{task.name}\0{task.setting.first.cache_key}\0{task.setting.first.scoring_name}"
        identity = str(uuid.UUID(bytes=hashlib.sha256(seed.encode()).digest()[:16], version=4))
        collection = task.name.replace("/", "-")
        folder = PurePosixPath("data", collection, developer, model)
        evaluation = f"{collection}/{model_id}/{int(now.timestamp())}"
        log = out / folder / f"{identity}_samples.jsonl"
        with JsonlWriter(log) as file:
            for item in task.items:
                file.write(_sample(task, item, evaluation, model_id))
        aggregate = out / folder / f"{identity}.json"
        details = {
            "format": "jsonl",
            "file_path": str(folder / log.name),
            "hash_algorithm": "sha256",
            "checksum": sha256_file(log),
            "total_rows": len(task.items),
        }
        write_json(
            aggregate,
            _aggregate(task, evaluation, model_id, organization, now)
            | {"detailed_evaluation_results": details},
        )
        paths += [aggregate, log]
    return paths


def _aggregate(
    task: ExportedTask, evaluation: str, model_id: str, organization: str, now: datetime
) -> dict[str, Any]:
    row, settings = task.setting.first, task.settings()
    return {
        "schema_version": SCHEMA_VERSION,
        "evaluation_id": evaluation,
        "retrieved_timestamp": str(now.timestamp()),
        "source_metadata": {
            "source_name": "meditron",
            "source_type": "evaluation_run",
            "source_organization_name": organization,
            "evaluator_relationship": "other",
        },
        "eval_library": _library(row),
        "model_info": {
            "name": row.model,
            "id": model_id,
            "developer": model_id.partition("/")[0],
            **({"inference_engine": {"name": row.engine}} if row.engine else {}),
            "additional_details": {
                "deployment_type": _deployment(row),
                "model_availability": "unknown",
                **({"files_sha256": row.model_digest} if row.model_digest else {}),
                **({"dtype": row.dtype} if row.dtype else {}),
            },
        },
        "evaluation_results": [
            {
                "evaluation_result_id": _result_id(task),
                "evaluation_name": task.name,
                "source_data": _source_data(task),
                "metric_config": {
                    "evaluation_description": "Fraction of multiple-choice questions answered right",
                    "metric_id": "accuracy",
                    "metric_name": "Accuracy",
                    "metric_kind": "accuracy",
                    "metric_unit": "proportion",
                    "lower_is_better": False,
                    "score_type": "continuous",
                    "min_score": 0.0,
                    "max_score": 1.0,
                },
                "score_details": {"score": task.accuracy, "uncertainty": _uncertainty(task)},
                "generation_config": {
                    **_generation_arguments(task),
                    "additional_details": {name.replace(" ", "_"): value for name, value in settings.items()},
                },
            }
        ],
    }


def _library(row: QuestionRow) -> dict[str, Any]:
    # Only rows of this program have a version of the task; those of others do not name theirs.
    name, version = ("unknown", "unknown") if row.version is None else ("meditron", __version__)
    exporter = {"additional_details": {"exported_by": f"meditron {__version__}"}}
    return {"name": name, "version": version, **(exporter if row.version is None else {})}


def _deployment(row: QuestionRow) -> str:
    if row.engine is None:
        return "unknown"
    return "externally_managed" if row.engine == "api" else "self_deployed"


def _result_id(task: ExportedTask) -> str:
    return f"{task.name}/{task.setting.first.scoring_name}/accuracy"


def _source_data(task: ExportedTask) -> dict[str, Any]:
    opened = task.task
    details = {"questions": str(len(task.items)), "questions_sha256": task.setting.first.data_sha256}
    if opened:
        details |= {"file": opened.data_file, "origin": opened.origin, "licence": opened.licence}
    return {
        "dataset_name": opened.title if opened else task.name,
        "source_type": "other",
        "additional_details": {name: value for name, value in details.items() if value},
    }


def _uncertainty(task: ExportedTask) -> dict[str, Any]:
    error, ends = task.standard_error, task.interval
    interval = {"confidence_level": 0.95, "method": "Wilson score"}
    return {
        "num_samples": len(task.items),
        **({"standard_error": {"value": error, "method": "analytic"}} if error is not None else {}),
        **({"confidence_interval": {"lower": ends[0], "upper": ends[1], **interval}} if ends else {}),
    }


def _generation_arguments(task: ExportedTask) -> dict[str, Any]:
    row = task.setting.first
    if not isinstance(row, GeneratedRow):
        return {}
    return {"generation_args": {"temperature": row.temperature, "max_tokens": row.max_tokens}}


def _sample(task: ExportedTask, item: ExportedItem, evaluation: str, model_id: str) -> dict[str, Any]:
    row, question = item.row, item.known_question
    text = f"{question.context}\n{question.text}" if question.context else question.text
    reference = [question.options[question.gold]]
    outputs = row.outputs if isinstance(row, GeneratedRow | ImportedRow) else ()
    # Methods that compare options generate no text: their answer is the chosen option.
    chosen = "" if row.prediction is None else question.options[row.prediction]
    hashed = json.dumps({"raw": text, "reference": reference}, sort_keys=True, separators=(",", ":"))
    return {
        "schema_version": SCHEMA_VERSION,
        "evaluation_id": evaluation,
        "model_id": model_id,
        "evaluation_name": task.name,
        "evaluation_result_id": _result_id(task),
        "sample_id": row.id,
        "sample_hash": hashlib.sha256(hashed.encode()).hexdigest(),
        "interaction_type": "single_turn",
        "input": {
            "raw": text,
            "formatted": item.prompt.prompt if item.prompt else None,
            "reference": reference,
            "choices": list(question.options),
        },
        "output": {"raw": list(outputs) or [chosen]},
        "answer_attribution": [
            {
                "turn_idx": 0,
                "source": "output.raw",
                "extracted_value": chosen,
                "extraction_method": row.scoring_name,
                "is_terminal": True,
            }
        ],
        "evaluation": {"score": float(row.correct), "is_correct": row.correct},
        "metadata": _metadata(item),
    }


def _metadata(item: ExportedItem) -> Mapping[str, str]:
    """Return what the schema has no field for; the scores keep their digits, as JSON."""
    row, question = item.row, item.question
    scores = getattr(row, "scores", None)
    values = {
        "question_sha256": row.question_sha256,
        "prompt_sha256": row.prompt_sha256,
        "gold": _letter(row.gold),
        "prediction": None if row.prediction is None else _letter(row.prediction),
        "subject": question.group if question else None,
        "context": question.context if question else None,
        "question": question.text if question and question.context else None,
        "scores": json.dumps(scores) if scores else None,
    }
    return {name: value for name, value in values.items() if value}


def _letter(index: int) -> str:
    """Return the letter of an option; its number, from 1, for an option after the 26th."""
    return ascii_uppercase[index] if index < len(ascii_uppercase) else str(index + 1)
