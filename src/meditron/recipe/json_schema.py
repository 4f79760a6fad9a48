"""JSON Schemas of recipes and of the server's settings: `recipe.schema.json`, `serve/config.schema.json`.

Commands take their flags from these files (`meditron.cli.options.flags_from`), because reading them is fast
while importing the config classes takes half a second, also for `--help`. After a change of a config class,
generate the files again:

    python -m meditron.recipe.json_schema
"""

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from meditron.recipe.registry import STAGES
from meditron.recipe.schema import RecipeHeader
from meditron.serve.config import ServeConfig

__all__ = ["SCHEMA_FILE", "SERVER_SCHEMA_FILE", "recipe_schema", "schema_text", "server_schema_text"]

SCHEMA_FILE = Path(__file__).with_name("recipe.schema.json")
SERVER_SCHEMA_FILE = Path(__file__).parents[1] / "serve" / "config.schema.json"


def recipe_schema() -> dict[str, Any]:
    """Build the JSON Schema of all keys and tables of a recipe."""
    models: list[type[BaseModel]] = [RecipeHeader, *(stage.config for stage in STAGES)]
    references, definitions = models_json_schema([(model, "validation") for model in models])
    header, *_ = (references[model, "validation"] for model in models)
    defs = definitions["$defs"]
    tables: dict[str, Any] = {}
    for stage in STAGES:
        reference = references[stage.config, "validation"]
        tables[stage.kind] = reference
        if stage.repeatable:
            # `name` is no field of the config class: it becomes part of the stage's name.
            name = {"type": "string", "description": f"Name of this table: the stage {stage.kind}.NAME."}
            defs[_definition_name(reference)]["properties"]["name"] = name
            tables[stage.kind] = {"anyOf": [reference, {"type": "array", "items": reference}]}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "meditron recipe",
        "type": "object",
        "properties": defs.pop(_definition_name(header))["properties"] | tables,
        "additionalProperties": False,
        "$defs": defs,
    }


def _definition_name(reference: dict[str, Any]) -> str:
    return str(reference["$ref"]).rpartition("/")[2]


def schema_text() -> str:
    """Return the schema as it is written to `SCHEMA_FILE`."""
    return json.dumps(recipe_schema(), indent=1, ensure_ascii=False) + "\n"


def server_schema_text() -> str:
    """Return the schema of the server's settings as it is written to `SERVER_SCHEMA_FILE`."""
    return json.dumps(ServeConfig.model_json_schema(), indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    SERVER_SCHEMA_FILE.write_text(server_schema_text(), encoding="utf-8")
    SCHEMA_FILE.write_text(schema_text(), encoding="utf-8")
