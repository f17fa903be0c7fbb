"""Values to records by Apache's `avro` for Python, in either wire format."""

import io
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import urllib3
from avro.io import BinaryDecoder, DatumReader
from avro.schema import Schema, parse

from tests.readers.fingerprints import schemas_by_fingerprint

Decode = Callable[[bytes], dict[str, Any]]


def decoder(wire_format: str, where: str) -> Decode:
    """wire_format: "single-object", where is then a folder of .avsc files; or "confluent", where is then a registry's URL."""
    if wire_format == "single-object":
        schemas = {fingerprint: parse(text) for fingerprint, text in schemas_by_fingerprint(Path(where)).items()}

        def decode_single_object(value: bytes) -> dict[str, Any]:
            assert value[:2] == b"\xc3\x01", value[:10].hex()
            return _read(schemas[value[2:10]], value[10:])

        return decode_single_object

    @cache
    def schema_of(schema_id: int) -> Schema:
        answer = urllib3.request("GET", f"{where}/schemas/ids/{schema_id}")
        assert answer.status == 200, answer.data
        return parse(json.loads(answer.data)["schema"])

    def decode_confluent(value: bytes) -> dict[str, Any]:
        assert value[:1] == b"\x00", value[:5].hex()
        return _read(schema_of(int.from_bytes(value[1:5], "big")), value[5:])

    return decode_confluent


def _read(schema: Schema, body: bytes) -> dict[str, Any]:
    source = io.BytesIO(body)
    record: Any = DatumReader(schema).read(BinaryDecoder(source))
    assert source.tell() == len(body), "bytes follow the record"
    return dict(record)
