"""The OpenAPI document of the API, generated from the classes of the requests."""

from functools import cache
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from meditron.core.disclaimer import DISCLAIMER
from meditron.serve.schemas import (
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    EmbeddingRequest,
    ResponsesRequest,
    TokenizeRequest,
)
from meditron.version import __version__

__all__ = ["openapi_document"]

_POSTS: dict[str, tuple[type[BaseModel], str]] = {
    "/v1/chat/completions": (ChatRequest, "Answer a conversation"),
    "/v1/completions": (CompletionRequest, "Continue a text"),
    "/v1/responses": (ResponsesRequest, "Answer a conversation, in the form of the Responses API"),
    "/v1/embeddings": (EmbeddingRequest, "Embed texts"),
    "/tokenize": (TokenizeRequest, "Return the token ids of a text or a conversation"),
    "/detokenize": (DetokenizeRequest, "Return the text of token ids"),
}
_GETS = {
    "/v1/models": "List the models and their states",
    "/v1/models/{model}": "Return one model",
    "/health": "Return 200 while the server runs",
    "/ready": "Return 200 once the first model is loaded, 503 before",
}
_STREAMED = ("/v1/chat/completions", "/v1/completions", "/v1/responses")
_ERRORS = {
    "400": "Invalid request",
    "401": "A key is missing or wrong",
    "404": "No such model",
    "429": "Too many requests",
    "503": "The model's process died; the next request starts another",
    "504": "The request took too long",
}
_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}


@cache
def openapi_document() -> dict[str, Any]:
    """Return the document."""
    kinds = [(kind, "validation") for kind, _ in _POSTS.values()]
    references, definitions = models_json_schema(kinds, ref_template="#/components/schemas/{model}")  # type: ignore[arg-type]
    paths: dict[str, Any] = {}
    for path, (kind, summary) in _POSTS.items():
        content = {"application/json": {"schema": references[kind, "validation"]}}
        operation = {"summary": summary, "requestBody": {"required": True, "content": content}}
        paths[path] = {"post": operation | {"responses": _responses(streamed=path in _STREAMED)}}
    for path, summary in _GETS.items():
        parameter = {"name": "model", "in": "path", "required": True, "schema": {"type": "string"}}
        parameters = {"parameters": [parameter]} if "{model}" in path else {}
        paths[path] = {"get": {"summary": summary, **parameters, "responses": _responses(streamed=False)}}
    return {
        "openapi": "3.1.0",
        "info": {"title": "meditron", "version": __version__, "description": DISCLAIMER},
        "paths": paths,
        "components": {
            "schemas": {**definitions["$defs"], "Error": _ERROR},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"key": []}],
    }


def _responses(*, streamed: bool) -> dict[str, Any]:
    content: dict[str, Any] = {"application/json": {"schema": {"type": "object"}}}
    if streamed:
        content["text/event-stream"] = {"schema": {"type": "string"}}
    error = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    failures = {status: {"description": text, "content": error} for status, text in _ERRORS.items()}
    return {"200": {"description": "Success", "content": content}, **failures}
