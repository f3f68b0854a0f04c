"""The OpenAPI document, generated from the structs that bodies are decoded into."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import msgspec

import flextopo
from flextopo.cluster.topology.levels import TIERS, AlignmentLevel
from flextopo.policies.serving.wire import NodesRequest, PreemptRequest
from flextopo.policies.snapshot_format import Snapshot

DECISION: dict[str, Any] = {
    "type": "object",
    "required": [
        "node", "victims", "gpus", "level", "selector", "fallback", "cause", "reasons", "elapsed_ms",
    ],
    "properties": {
        "node": {"type": ["string", "null"], "description": "null = do not preempt now"},
        "victims": {"type": "array", "items": {"type": "string"}},
        "gpus": {"type": "array", "items": {"type": "integer"}},
        "level": {"enum": [*(level.name.lower() for level in AlignmentLevel), "unknown", None]},
        "selector": {"type": "string"},
        "fallback": {"type": ["string", "null"]},
        "cause": {"type": "string", "description": "why the baseline decided, empty = it did not"},
        "reasons": {"type": "array", "items": {"type": "string"}},
        "elapsed_ms": {"type": "number"},
    },
}  # fmt: skip

GANG: dict[str, Any] = {
    "members": {
        "type": "array",
        "description": "empty = do not preempt now",
        "items": {
            "type": "object",
            "required": ["name", "node", "gpus", "cores", "level"],
            "properties": {
                "name": {"type": "string"},
                "node": {"type": "string"},
                "gpus": {"type": "array", "items": {"type": "integer"}},
                "cores": {
                    "type": "array",
                    "description": "of each NUMA node",
                    "items": {"type": "integer"},
                },
                "level": {"enum": [level.name.lower() for level in AlignmentLevel]},
            },
        },
    },
    "network_level": {"enum": [*(tier.name for tier in TIERS.values()), None]},
    "cost_gpu_s": {"type": ["number", "null"]},
    "wait_s": {"type": ["integer", "null"]},
}
"""What an answer about a gang has beside the others."""

GANG_DECISION: dict[str, Any] = {
    "type": "object",
    "required": [*DECISION["required"], *GANG],
    "properties": DECISION["properties"] | GANG,
}

ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {"error": {"type": "string"}, "Error": {"type": "string"}},
}

PREEMPT_RESULT = {
    "type": "object",
    "required": ["NodeNameToMetaVictims"],
    "properties": {
        "NodeNameToMetaVictims": {
            "type": "object",
            "additionalProperties": {
                "type": "object",
                "required": ["Pods", "NumPDBViolations"],
                "properties": {
                    "Pods": {
                        "type": "array",
                        "items": {
                            "type": "object",
                            "required": ["UID"],
                            "properties": {"UID": {"type": "string"}},
                        },
                    },
                    "NumPDBViolations": {"type": "integer"},
                },
            },
        }
    },
}

FILTER_RESULT = {
    "type": "object",
    "required": ["FailedNodes", "FailedAndUnresolvableNodes", "Error"],
    "properties": {
        "Nodes": {"type": "object"},
        "NodeNames": {"type": "array", "items": {"type": "string"}},
        "FailedNodes": {"type": "object", "additionalProperties": {"type": "string"}},
        "FailedAndUnresolvableNodes": {
            "type": "object",
            "additionalProperties": {"type": "string"},
        },
        "Error": {"type": "string"},
    },
}

PRIORITIZE_RESULT = {
    "type": "array",
    "items": {
        "type": "object",
        "required": ["Host", "Score"],
        "properties": {
            "Host": {"type": "string"},
            "Score": {"type": "integer", "minimum": 0, "maximum": 10},
        },
    },
}


@lru_cache
def openapi_document() -> dict[str, Any]:
    """Return the document, OpenAPI 3.1."""
    bodies = (Snapshot, PreemptRequest, NodesRequest)
    schemas, components = msgspec.json.schema_components(
        bodies, ref_template="#/components/schemas/{name}"
    )
    components |= {
        "Decision": DECISION,
        "GangDecision": GANG_DECISION,
        "Error": ERROR,
        "PreemptResult": PREEMPT_RESULT,
        "FilterResult": FILTER_RESULT,
        "PrioritizeResult": PRIORITIZE_RESULT,
    }
    snapshot, preempt, nodes = schemas
    return {
        "openapi": "3.1.0",
        "info": {"title": "flextopo", "version": flextopo.__version__},
        "paths": {
            "/v1/decide": _post(
                "Decide about a snapshot of a cluster.", snapshot, "Decision", "GangDecision"
            ),
            "/preempt": _post("Extender verb: choose victims.", preempt, "PreemptResult"),
            "/filter": _post("Extender verb: refuse nodes.", nodes, "FilterResult"),
            "/prioritize": _post("Extender verb: score nodes.", nodes, "PrioritizeResult"),
            "/healthz": _get("The process serves."),
            "/readyz": _get("The cluster is known."),
        },
        "components": {"schemas": components},
    }


def _post(about: str, body: dict[str, Any], *results: str) -> dict[str, Any]:
    errors = {
        "400": "the body is not legal",
        "408": "the body did not come in time",
        "413": "the body is too large",
        "500": "neither selector nor baseline gave an answer",
        "503": "too many requests, or the cluster is not known yet",
    }
    return {
        "post": {
            "summary": about,
            "requestBody": {"required": True, "content": {"application/json": {"schema": body}}},
            "responses": {
                "200": _response("the answer", *results),
                **{status: _response(why, "Error") for status, why in errors.items()},
            },
        }
    }


def _get(about: str) -> dict[str, Any]:
    content = {"application/json": {"schema": {"type": "object"}}}
    responses = {"200": {"description": "yes", "content": content}}
    if "cluster" in about:
        responses["503"] = {"description": "no", "content": content}
    return {"get": {"summary": about, "responses": responses}}


def _response(about: str, *schemas: str) -> dict[str, Any]:
    found: list[dict[str, Any]] = [{"$ref": f"#/components/schemas/{name}"} for name in schemas]
    schema = found[0] if len(found) == 1 else {"anyOf": found}
    return {"description": about, "content": {"application/json": {"schema": schema}}}
