"""The OpenAPI document of the server, at `/openapi.json`."""

from __future__ import annotations

from typing import Any

from .. import __version__

_TEXTS = {"oneOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}, "minItems": 1}]}
_VECTOR = {"type": "array", "items": {"type": "number"}}
_ROLES = ["query", "document", "raw", "search_query", "search_document", "classification", "clustering"]
_TEI_ERROR = {
    "type": "object",
    "required": ["error", "error_type"],
    "properties": {"error": {"type": "string"}, "error_type": {"type": "string"}},
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
_EMBEDDINGS_REQUEST = {
    "type": "object",
    "required": ["input"],
    "additionalProperties": False,
    "properties": {
        "input": _TEXTS,
        "model": {"type": ["string", "null"], "description": "the name that /v1/models lists, or nothing"},
        "encoding_format": {"type": ["string", "null"], "enum": ["float", "base64", None]},
        "dimensions": {"type": ["integer", "null"], "description": "the model's own, or nothing"},
        "user": {"description": "not looked at"},
        "input_type": {
            "type": ["string", "null"],
            "enum": [*_ROLES, None],
            "description": "which of the model's prompts the texts get",
        },
        "truncate": {
            "type": ["string", "null"],
            "enum": ["warn", "error", None],
            "description": "warn: cut texts that are too long and count them in the reply; error: refuse them",
        },
    },
}
_EMBEDDINGS_REPLY = {
    "type": "object",
    "required": ["object", "data", "model", "usage", "truncated"],
    "properties": {
        "object": {"const": "list"},
        "data": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["object", "index", "embedding"],
                "properties": {
                    "object": {"const": "embedding"},
                    "index": {"type": "integer"},
                    "embedding": {"oneOf": [_VECTOR, {"type": "string", "contentEncoding": "base64"}]},
                },
            },
        },
        "model": {"type": "string"},
        "usage": {
            "type": "object",
            "required": ["prompt_tokens", "total_tokens"],
            "properties": {"prompt_tokens": {"type": "integer"}, "total_tokens": {"type": "integer"}},
        },
        "truncated": {"type": "integer", "description": "texts that were cut at the model's maximum"},
    },
}
_MODEL = {
    "type": "object",
    "required": ["id", "object"],
    "properties": {"id": {"type": "string"}, "object": {"const": "model"}},
}
_ERRORS = (400, 401, 404, 405, 408, 413, 415, 422, 429, 500, 503)
_FLAG = {"type": ["boolean", "null"]}
_NAME = {"type": ["string", "null"], "description": "one of the model's prompts; default: that of the server's role"}


def document(*, secured: bool) -> dict[str, Any]:
    """Return the document; `secured` says that an API key is needed."""
    embed = {
        "inputs": _TEXTS,
        "normalize": _FLAG,
        "truncate": _FLAG,
        "truncation_direction": {"type": ["string", "null"], "enum": ["Right", "right", None]},
        "prompt_name": _NAME,
        "dimensions": {"type": ["integer", "null"]},
    }
    similarity = {
        "inputs": _object({"source_sentence": {"type": "string"}, "sentences": _TEXTS}, "source_sentence", "sentences"),
        "parameters": {
            "oneOf": [
                {"type": "null"},
                _object({key: embed[key] for key in ("truncate", "truncation_direction", "prompt_name")}),
            ]
        },
    }
    tokenize = {"inputs": _TEXTS, "add_special_tokens": _FLAG, "prompt_name": _NAME}
    place = {"type": ["integer", "null"]}
    token = _object(
        {
            "id": {"type": "integer"},
            "text": {"type": "string"},
            "special": {"type": "boolean"},
            "start": place,
            "stop": place,
        }
    )
    paths = {
        "/v1/embeddings": _post("Vectors of texts, as OpenAI's", _EMBEDDINGS_REQUEST, _EMBEDDINGS_REPLY, _ERROR),
        "/v1/models": _get("The model, as OpenAI's", {"type": "object", "required": ["object", "data"]}),
        "/v1/models/{name}": _get("One model, as OpenAI's", _MODEL, parameter="name"),
        "/embed": _post(
            "Vectors of texts, as text-embeddings-inference's",
            _object(embed, "inputs"),
            {"type": "array", "items": _VECTOR},
            _TEI_ERROR,
        ),
        "/similarity": _post(
            "Cosines of one text with others, as text-embeddings-inference's",
            _object(similarity, "inputs"),
            _VECTOR,
            _TEI_ERROR,
        ),
        "/tokenize": _post(
            "Tokens of texts, as text-embeddings-inference's",
            _object(tokenize, "inputs"),
            {"type": "array", "items": {"type": "array", "items": token}},
            _TEI_ERROR,
        ),
        "/info": _get("The model and the server's limits", {"type": "object"}),
        "/": _post(
            "One of /embed and /similarity, as clients of inference endpoints send them",
            {"oneOf": [_object(embed, "inputs"), _object(similarity, "inputs")]},
            {"oneOf": [{"type": "array", "items": _VECTOR}, _VECTOR]},
            _TEI_ERROR,
        ),
        "/health": _get("Whether requests should be sent here", {"type": "object"}, errors=(405, 503), secured=False),
        "/ping": _get("Whether the process is sound", {"type": "object"}, errors=(405, 503), secured=False),
        "/metrics": _get("Metrics for Prometheus", {"type": "string"}, media_type="text/plain"),
    }
    security = {
        "components": {"securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}},
        "security": [{"key": []}],
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": "e5onnx", "version": __version__, "description": "Text embeddings on a CPU."},
        "paths": paths,
        **(security if secured else {}),
    }


def _object(properties: dict[str, Any], *required: str) -> dict[str, Any]:
    return {"type": "object", "required": list(required), "properties": properties, "additionalProperties": False}


def _post(summary: str, request: Any, reply: Any, error: Any) -> dict[str, Any]:
    errors = {str(status): _content("refused", error) for status in _ERRORS}
    return {
        "post": {
            "summary": summary,
            "requestBody": {"required": True, "content": {"application/json": {"schema": request}}},
            "responses": {"200": _content("done", reply), **errors},
        }
    }


def _get(
    summary: str,
    reply: Any,
    *,
    parameter: str | None = None,
    errors: tuple[int, ...] = (401, 404, 405),
    media_type: str = "application/json",
    secured: bool = True,
) -> dict[str, Any]:
    error_replies = {str(status): _content("refused", {"type": "object"}) for status in errors}
    operation: dict[str, Any] = {
        "summary": summary,
        "responses": {"200": _content("done", reply, media_type), **error_replies},
    }
    if parameter is not None:
        operation["parameters"] = [{"name": parameter, "in": "path", "required": True, "schema": {"type": "string"}}]
    if not secured:
        operation["security"] = []
    return {"get": operation}


def _content(description: str, schema: Any, media_type: str = "application/json") -> dict[str, Any]:
    return {"description": description, "content": {media_type: {"schema": schema}}}
