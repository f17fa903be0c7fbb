"""Avro's Parsing Canonical Form and CRC-64-AVRO, straight from the specification, for the kinds of type in our schemas.

Apache's Python package cannot be asked: avro 1.12.2 keeps logical types in the canonical form, so that its fingerprints
differ from Java's wherever there is one.
"""

import json
from pathlib import Path
from typing import Any

_EMPTY = 0xC15D213AA4D7A795
_PRIMITIVES = {"null", "boolean", "int", "long", "float", "double", "bytes", "string"}


def schemas_by_fingerprint(folder: Path) -> dict[bytes, str]:
    """Return the 8 bytes that follow C3 01, to the text of the schema; of every .avsc file under the folder."""
    texts = [file.read_text("utf-8") for file in sorted(folder.rglob("*.avsc"))]
    return {crc_64_avro(canonical_form(json.loads(text)).encode()).to_bytes(8, "little"): text for text in texts}


def canonical_form(schema: Any, namespace: str = "") -> str:
    """Return the schema's Parsing Canonical Form."""
    if isinstance(schema, list):
        return f"[{','.join(canonical_form(branch, namespace) for branch in schema)}]"
    if isinstance(schema, str):
        return json.dumps(schema if schema in _PRIMITIVES else _full_name(schema, namespace))
    if schema["type"] == "array":
        return f'{{"type":"array","items":{canonical_form(schema["items"], namespace)}}}'
    if schema["type"] != "record":
        return canonical_form(schema["type"], namespace)
    name = _full_name(schema["name"], schema.get("namespace", namespace))
    inner = name.rpartition(".")[0]
    fields = (
        f'{{"name":{json.dumps(field["name"])},"type":{canonical_form(field["type"], inner)}}}'
        for field in schema["fields"]
    )
    return f'{{"name":{json.dumps(name)},"type":"record","fields":[{",".join(fields)}]}}'


def _full_name(name: str, namespace: str) -> str:
    return name if "." in name or not namespace else f"{namespace}.{name}"


def crc_64_avro(content: bytes) -> int:
    """Return the 64-bit Rabin fingerprint."""
    fingerprint = _EMPTY
    for byte in content:
        fingerprint ^= byte
        for _ in range(8):
            fingerprint = fingerprint >> 1 ^ (_EMPTY if fingerprint & 1 else 0)
    return fingerprint
