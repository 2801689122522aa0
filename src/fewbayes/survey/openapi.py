"""The OpenAPI description of a study's requests."""

from __future__ import annotations

from typing import Any

import msgspec

_ERRORS = {
    "401": "no participant, or a token that this server did not sign",
    "409": "the question has another answer already",
    "413": "the body is too long",
    "415": "the body is not application/json",
    "422": "the body is not what is asked for",
    "429": "too fast",
}


def document(given: type, consent: type) -> dict[str, Any]:
    """given, consent: the dataclasses of the two bodies."""
    (answer, agreed), parts = msgspec.json.schema_components(
        [given, consent], ref_template="#/components/schemas/{name}"
    )
    token = [{"participant": []}]
    paths = {
        "/api/study": {"get": _told("Title, consent and questions.")},
        "/api/participants": {
            "post": _told(
                "A new participant, whose token is set as a cookie.", agreed, "201", None, ("413", "415", "422", "429")
            ),
            "delete": _told("Deletes all answers of the participant.", security=token, errors=("401",)),
        },
        "/api/trials": {"get": _told("The participant's trials, in order.", security=token, errors=("401",))},
        "/api/answers": {
            "post": _told("Keeps an answer; 200 when it was kept before.", answer, "201", token, tuple(_ERRORS))
        },
        "/images/{name}.png": {
            "get": {
                "summary": "A picture under its opaque name.",
                "security": token,
                "parameters": [{"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}],
                "responses": {
                    "200": {"description": "the picture", "content": {"image/png": {}}},
                    "401": _failure("401"),
                    "404": {"description": "no such picture", **_JSON},
                },
            }
        },
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": "fewbayes study", "version": "1"},
        "paths": paths,
        "components": {
            "schemas": parts,
            "securitySchemes": {"participant": {"type": "apiKey", "in": "cookie", "name": "participant"}},
        },
    }


_JSON = {"content": {"application/json": {"schema": {"type": "object"}}}}


def _failure(code: str) -> dict[str, Any]:
    return {"description": _ERRORS[code], **_JSON}


def _told(
    summary: str,
    body: dict[str, Any] | None = None,
    good: str = "200",
    security: list[dict[str, list[str]]] | None = None,
    errors: tuple[str, ...] = (),
) -> dict[str, Any]:
    told: dict[str, Any] = {"summary": summary, "responses": {good: {"description": "done", **_JSON}}}
    if good == "201":
        told["responses"]["200"] = {"description": "it was done before", **_JSON}
    told["responses"] |= {code: _failure(code) for code in errors}
    if body is not None:
        told["requestBody"] = {"required": True, "content": {"application/json": {"schema": body}}}
    if security:
        told["security"] = security
    return told
