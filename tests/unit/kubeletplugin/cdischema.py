"""The CDI specification's rules for a spec file, as a JSON schema, for the versions that our specs use.

Source of the facts: Container Device Interface, SPEC.md: kinds, names, containerEdits, and which version brought
which field.
"""

from typing import Any

_TEXT = {"type": "string", "minLength": 1}
_PATH = {"type": "string", "pattern": "^/"}
_NODE = {
    "type": "object",
    "additionalProperties": False,
    "required": ["path"],
    "properties": {
        "path": _PATH,
        "hostPath": _PATH,
        "type": {"enum": ["b", "c", "u", "p"]},
        "major": {"type": "integer"},
        "minor": {"type": "integer"},
        "fileMode": {"type": "integer"},
        "permissions": {"type": "string", "pattern": "^[rwm]*$"},
        "uid": {"type": "integer"},
        "gid": {"type": "integer"},
    },
}
_MOUNT = {
    "type": "object",
    "additionalProperties": False,
    "required": ["hostPath", "containerPath"],
    "properties": {
        "hostPath": _PATH,
        "containerPath": _PATH,
        "type": _TEXT,
        "options": {"type": "array", "items": _TEXT},
    },
}
_EDITS = {
    "type": "object",
    "additionalProperties": False,
    "properties": {
        "env": {"type": "array", "items": {"type": "string", "pattern": "^[^=]+=.*$"}},
        "deviceNodes": {"type": "array", "items": _NODE},
        "hooks": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {
                    "hookName": {"enum": ["prestart", "createRuntime", "createContainer", "startContainer"]},
                    "path": {"type": "string", "pattern": "^/"},
                    "args": {"type": "array", "items": {"type": "string"}},
                    "env": {"type": "array", "items": {"type": "string"}},
                    "timeout": {"type": "integer"},
                },
                "required": ["hookName", "path"],
                "additionalProperties": False,
            },
        },
        "mounts": {"type": "array", "items": _MOUNT},
    },
}
_CLASS = "[A-Za-z]([A-Za-z0-9_-]*[A-Za-z0-9])?"
_VENDOR = "[A-Za-z]([A-Za-z0-9_.-]*[A-Za-z0-9])?"


def schema(version: str) -> dict[str, Any]:
    """Return the rules of one cdiVersion, "0.3.0" or "0.5.0"."""
    first = "[A-Za-z0-9]" if version >= "0.5.0" else "[A-Za-z]"  # names may start with a digit from 0.5.0 on
    edits: dict[str, Any] = _EDITS
    if version < "0.5.0":
        node = {**_NODE, "properties": {k: v for k, v in _NODE["properties"].items() if k != "hostPath"}}  # type: ignore[attr-defined]
        edits = {**_EDITS, "properties": {**_EDITS["properties"], "deviceNodes": {"type": "array", "items": node}}}  # type: ignore[dict-item]
    device = {
        "type": "object",
        "additionalProperties": False,
        "required": ["name", "containerEdits"],
        "properties": {
            "name": {"type": "string", "pattern": f"^{first}([A-Za-z0-9_.:-]*[A-Za-z0-9])?$"},
            "containerEdits": {**edits, "minProperties": 1},
        },
    }
    return {
        "type": "object",
        "additionalProperties": False,
        "required": ["cdiVersion", "kind", "devices"],
        "properties": {
            "cdiVersion": {"const": version},
            "kind": {"type": "string", "pattern": f"^{_VENDOR}/{_CLASS}$"},
            "devices": {"type": "array", "minItems": 1, "items": device},
            "containerEdits": edits,
        },
    }
