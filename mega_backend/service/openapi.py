"""What the OpenAPI page says beyond what the endpoints' signatures show: messages, their fields, and refusals."""

from __future__ import annotations

import dataclasses
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from mega_backend import protocol
from mega_backend.protocol import FindParameters, RandomParameters, RecoverParameters, ResampleParameters, Sampling
from mega_backend.protocol_motion import PoseParameters, VideoParameters

DESCRIPTION = f"""Photographs to body meshes.

Requests and answers are *messages* (`{protocol.CONTENT_TYPE}`): the bytes `MEGA`, the length of a header (uint32,
little endian), the header (JSON: `kind`, `fields`, and `arrays`: a list of names and sizes), and the arrays as `.npy`
files. A request is one message whose kind is the endpoint's name and whose fields are its parameters (see
`RecoverParameters`, `ResampleParameters`, `RandomParameters`, `FindParameters`). An answer is a stream: `queued`,
`progress`, `scene`, one `person` each (of `/find` one message `people`), and `done`, or `error` with `status` and
`text`. Clips are several messages (see `VideoParameters`) and are answered by `clip`, `build` and one `frame` each.
Closing the connection stops the work.
"""

PARAMETERS = (
    RecoverParameters, ResampleParameters, RandomParameters, FindParameters, VideoParameters, PoseParameters,
)  # fmt: skip
_SENTENCES = {
    401: "no token, or a wrong one",
    403: "the request comes from a web page of another site, or under another name",
    408: "the upload took too long",
    413: "the request is too large",
    415: "the content type is not that of messages",
    422: "wrong parameters, or a picture that cannot be used",
    503: "loading, stopping, or too much waiting; Retry-After says when to come back",
}
_PROBLEM = {
    "type": "object",
    "required": ["detail"],
    "properties": {"detail": {"type": "string", "description": "one sentence that says what to do"}},
}
_BINARY = {protocol.CONTENT_TYPE: {"schema": {"type": "string", "format": "binary"}}}

STREAM: dict[int | str, dict[str, Any]] = {200: {"description": "a stream of messages", "content": _BINARY}}
BODY: dict[int | str, dict[str, Any]] = {
    200: {"description": "one message of kind `body`", "content": _BINARY},
    304: {"description": "unchanged since the hash in If-None-Match"},
}
RIG: dict[int | str, dict[str, Any]] = {200: {"description": "one message of kind `rig`", "content": _BINARY}}
METRICS: dict[int | str, dict[str, Any]] = {
    200: {"description": "Prometheus text format", "content": {"text/plain": {"schema": {"type": "string"}}}}
}


def refusals(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The responses with these statuses."""
    answers: dict[int | str, dict[str, Any]] = {}
    for status in statuses:
        answers[status] = {"description": _SENTENCES[status], "content": {"application/json": {"schema": _PROBLEM}}}
        if status == 503:
            answers[status]["headers"] = {"Retry-After": {"description": "seconds", "schema": {"type": "integer"}}}
    return answers


def request_of(kind: type[Sampling | FindParameters]) -> dict[str, Any]:
    """The request body of an endpoint with these parameters."""
    text = f"One message whose fields are `{kind.__name__}`. {(kind.__doc__ or '').strip()}"
    return {"requestBody": {"required": True, "description": text, "content": _BINARY}}


def fields_of(kind: type[Sampling | FindParameters]) -> dict[str, Any]:
    """The JSON schema of a request message's fields."""
    properties: dict[str, Any] = {}
    for entry in dataclasses.fields(kind):
        if entry.name == "keep":
            items = {"type": "string", "enum": list(protocol.PARTS)}
            properties[entry.name] = {"type": "array", "items": items, "default": []}
            continue
        if "choices" in entry.metadata:
            choices = list(entry.metadata["choices"])
            properties[entry.name] = {"type": "string", "enum": choices, "default": entry.default}
            continue
        if isinstance(entry.default, bool):
            properties[entry.name] = {"type": "boolean", "default": entry.default}
            continue
        properties[entry.name] = {
            "type": "integer" if isinstance(entry.default, int) else "number",
            "minimum": entry.metadata["low"],
            "maximum": entry.metadata["high"],
            "default": entry.default,
        }
    return {"type": "object", "additionalProperties": False, "properties": properties, "description": kind.__doc__}


def schema(app: FastAPI) -> dict[str, Any]:
    """The whole document; made once."""
    if app.openapi_schema is None:
        made = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
        schemas = made.setdefault("components", {}).setdefault("schemas", {})
        for kind in PARAMETERS:
            schemas[kind.__name__] = fields_of(kind)
        made["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        made["security"] = [{"token": []}, {}]
        app.openapi_schema = made
    return app.openapi_schema
