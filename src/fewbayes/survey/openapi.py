"""The OpenAPI description of a study's requests."""

from __future__ import annotations

from typing import Any

import msgspec

_SAID = {
    "200": "done",
    "201": "done",
    "401": "no participant, or a token that this server did not sign",
    "404": "no such picture",
    "409": "the question has another answer already",
    "413": "the body is too long",
    "415": "the body is not application/json",
    "422": "the body is not what is asked for",
    "429": "too fast",
    "503": "the database does not answer; nothing was kept",
}
_JSON = {"application/json": {"schema": {"type": "object"}}}
_NAME = {"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}


def document(given: type, consent: type) -> dict[str, Any]:
    """given, consent: the dataclasses of the two bodies."""
    (answer, agreed), parts = msgspec.json.schema_components(
        [given, consent], ref_template="#/components/schemas/{name}"
    )
    picture = _asked("A picture under its opaque name.", "200 401 404", parameters=[_NAME])
    picture["responses"]["200"]["content"] = {"image/png": {}}
    paths = {
        "/api/study": {"get": _asked("Title, consent and questions.", "200")},
        "/api/participants": {
            "post": _asked("A new participant, whose token is set as a cookie.", "200 201 413 415 422 429 503", agreed),
            "delete": _asked("Deletes the participant and all answers.", "200 401 503"),
        },
        "/api/trials": {"get": _asked("The participant's trials, in order.", "200 401 503")},
        "/api/answers": {
            "post": _asked("Keeps an answer; 200: kept before.", "200 201 401 409 413 415 422 429 503", answer)
        },
        "/images/{name}.png": {"get": picture},
    }
    token = {"participant": {"type": "apiKey", "in": "cookie", "name": "participant"}}
    return {
        "openapi": "3.1.0",
        "info": {"title": "fewbayes study", "version": "1"},
        "paths": paths,
        "components": {"schemas": parts, "securitySchemes": token},
    }


def _asked(summary: str, statuses: str, body: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    """One request with the statuses it can have; those that can have 401 need a token."""
    told = {"summary": summary, "responses": {s: {"description": _SAID[s], "content": _JSON} for s in statuses.split()}}
    needed = {"requestBody": {"required": True, "content": {"application/json": {"schema": body}}}} if body else {}
    return told | needed | ({"security": [{"participant": []}]} if "401" in statuses else {}) | more
