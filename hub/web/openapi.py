"""The OpenAPI 3.1 document, made from the table of endpoints and the types they name."""

from __future__ import annotations

import re
from collections.abc import Iterable
from importlib import metadata
from typing import Annotated, Any

import msgspec
from msgspec import Meta

Limit = Annotated[int, Meta(ge=1, le=1000)]
"""How many lines a list may have."""


_SCHEMES = {
    "basic": {"type": "http", "scheme": "basic"},
    "token": {"type": "http", "scheme": "bearer"},
    "session": {"type": "apiKey", "in": "cookie", "name": "hub-session"},
}


def document(endpoints: Iterable[Any], fault: Any) -> dict[str, Any]:
    """The document; ``endpoints`` as in ``hub.web.api``, ``fault`` the type of every error's body."""
    table = list(endpoints)
    kinds = [fault]
    for endpoint in table:
        kinds += [kind for kind in (endpoint.body, endpoint.returns) if kind is not None and not isinstance(kind, str)]
        kinds += [kind for _, kind, _ in endpoint.query]
    schemas, components = msgspec.json.schema_components(kinds, ref_template="#/components/schemas/{name}")
    by_kind = list(zip(kinds, schemas, strict=True))

    def schema(kind: Any) -> dict[str, Any]:
        return next(found for known, found in by_kind if known is kind or known == kind)

    paths: dict[str, dict[str, Any]] = {}
    for endpoint in table:
        operation: dict[str, Any] = {
            "operationId": endpoint.function.__name__,
            "summary": endpoint.summary,
            "description": endpoint.function.__doc__ or "",
            "x-roles": sorted(role.value for role in endpoint.allowed),
            "parameters": [
                *(
                    {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
                    for name in re.findall(r"{(\w+)}", endpoint.path)
                ),
                *(
                    {"name": name, "in": "query", "description": text, "schema": schema(kind)}
                    for name, kind, text in endpoint.query
                ),
            ],
            "responses": {
                "200": {"description": endpoint.summary, "content": _content(endpoint.returns, schema)},
                "default": {"description": "A fault", "content": {"application/json": {"schema": schema(fault)}}},
            },
        }
        if endpoint.body is not None:
            content = {"application/json": {"schema": schema(endpoint.body)}}
            operation["requestBody"] = {"required": True, "content": content}
        paths.setdefault(endpoint.path, {})[endpoint.method.lower()] = operation
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Bedside hub",
            "version": metadata.version("bedside"),
            "description": "Cases by urgency, their results and reviews. Results are advice for a human, not a diagnosis.",
        },
        "paths": paths,
        "components": {"schemas": components, "securitySchemes": _SCHEMES},
        "security": [{}, {"basic": []}, {"token": []}, {"session": []}],
    }


def _content(returns: Any, schema: Any) -> dict[str, Any]:
    if isinstance(returns, str):
        return {returns: {"schema": {"type": "string", "contentEncoding": "binary"}}}
    return {"application/json": {"schema": schema(returns)}}
