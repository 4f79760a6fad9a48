"""Flags that commands take from the tables of a recipe."""

from typing import Any

import pytest
from cyclopts import App, CycloptsError, Parameter

from meditron.cli.options import OPTIONS, default_text, flags_from
from meditron.core.config import StageConfig
from meditron.recipe import STAGES

CONFIGS: dict[str, type[StageConfig]] = {stage.kind: stage.config for stage in STAGES}


@pytest.fixture
def app() -> App:
    app = App(
        name="demo",
        help_format="plaintext",
        group_parameters=OPTIONS,
        default_parameter=Parameter(negative=(), show_default=default_text),
        result_action="return_value",
    )

    @app.command
    @flags_from(
        "pretrain", {"Steps": ("tokens", "warmup", "dtype", "threads")}, names={"threads": "--cpu-threads"}
    )
    @flags_from("quantize", {"Files": ("types",)}, names={"types": "--type"})
    def train(model: str, /, *, force: bool = False, **settings: Any) -> tuple[str, dict[str, Any]]:
        """Train a model."""
        return model, settings

    return app


def run(app: App, words: str) -> Any:
    return app(words.split(), exit_on_error=False, print_error=False)


def test_a_command_takes_the_flags_that_were_given(app: App) -> None:
    words = "train m --tokens 4096 --warmup 0.5 --cpu-threads 2 --type F16 --type Q8_0"
    settings = {"tokens": 4096, "warmup": 0.5, "threads": 2, "types": ("F16", "Q8_0")}
    assert run(app, words) == ("m", settings)
    assert run(app, "train m --tokens 1") == ("m", {"tokens": 1})


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("train m --tokens 0", "--tokens"),
        ("train m --tokens 1 --warmup 1.0", "--warmup"),
        ("train m --tokens 1 --dtype float16", "float32"),
        ("train m", "--tokens"),
    ],
)
def test_choices_bounds_and_required_keys_are_those_of_the_config(app: App, words: str, message: str) -> None:
    with pytest.raises(CycloptsError, match=message):
        run(app, words)


def test_help_shows_groups_defaults_and_the_docstrings_of_the_config(
    app: App, capsys: pytest.CaptureFixture[str]
) -> None:
    run(app, "train --help")
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    fields = CONFIGS["pretrain"].model_fields
    for key in ("tokens", "warmup", "dtype", "threads"):
        assert " ".join(str(fields[key].description).replace("`", "").split()) in shown
    assert f"[default: {fields['warmup'].default}]" in shown
    assert shown.index("Options") < shown.index("Files") < shown.index("--type")
