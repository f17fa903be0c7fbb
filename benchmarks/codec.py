"""Nanoseconds a record to encode and to decode, beside bare fastavro in the same run.

uv run python benchmarks/codec.py [--rounds 9] [--json]
uv run --with cavro==1.0.0 python benchmarks/codec.py     # one more library, where it can be had

Every program turns the same record into an Avro body and back; the golden examples are the records. The programs:
  fastavro          schemaless_writer and schemaless_reader with the shipped .avsc: datetimes and decimals, as people use it
  fastavro-plain    the same without logical types: times are integers, money is bytes. The quickest that fastavro can be
  fastavro-some     reading only: resolved to a reader schema that wants two fields
  fastavro-strict   reading only: plain, and written again to see that the bytes are what a writer writes
  apache            Apache avro's DatumWriter and DatumReader, plain
  cavro             cavro's binary_encode and binary_decode, plain
  ours              Encoder and Decoder: frame, strict reading, and a typed, immutable record instead of a dict
Rounds alternate between the programs, so that what else runs on the machine hits all alike. Quote the ratios.
"""

import argparse
import io
import json
import time
from collections.abc import Callable, Iterator
from decimal import Decimal
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import avro.io
import avro.schema
import fastavro
from measuring import median, say, without_logical_types

from kinguin_streams.schemas.codec import SINGLE_OBJECT_HEADER_BYTES, Decoder, Encoder
from kinguin_streams.schemas.events import RecordName
from kinguin_streams.schemas.versions import shipped

EXAMPLES = Path(__file__).parents[1] / "schemas" / "examples"
CASES: tuple[tuple[RecordName, int, str], ...] = (
    ("order.status", 1, "documented"),
    ("order.complete", 1, "documented"),
    ("product.update", 1, "documented"),
    ("product.update", 2, "price_six_decimals"),
    ("product.update", 3, "offers_two"),
)
ROUND_S = 0.05
Operation = Callable[[], object]


def operations(record: RecordName, version: int, name: str) -> Iterator[tuple[str, str, Operation]]:
    """Yield (direction, program, what it does) for one example, each having shown that it does it right."""
    value = (EXAMPLES / record / str(version) / f"{name}.avro").read_bytes()
    body = value[SINGLE_OBJECT_HEADER_BYTES:]
    schema = json.loads(shipped().get(record, version).text)
    plain = without_logical_types(schema)
    full, quick = fastavro.parse_schema(schema), fastavro.parse_schema(plain)
    some = fastavro.parse_schema(
        {**plain, "fields": [f for f in plain["fields"] if f["name"] in ("store", "updatedAt")]}
    )
    apache = avro.schema.parse(json.dumps(plain))
    apache_writer, apache_reader = avro.io.DatumWriter(apache), avro.io.DatumReader(apache)

    def fast_write(parsed: Any, fields: Any) -> bytes:
        out = io.BytesIO()
        fastavro.schemaless_writer(out, parsed, fields)
        return out.getvalue()

    def fast_read(parsed: Any, wanted: Any = None) -> Any:
        return fastavro.schemaless_reader(io.BytesIO(body), parsed, wanted)

    def strict() -> Any:
        fields = fast_read(quick)
        assert fast_write(quick, fields) == body
        return fields

    def apache_write() -> bytes:
        out = io.BytesIO()
        apache_writer.write(fields, avro.io.BinaryEncoder(out))
        return out.getvalue()

    fields, with_types = fast_read(quick), fast_read(full)
    encoder, decoder = Encoder({record: version}), Decoder()
    typed = decoder.decode(value)
    assert fast_write(full, with_types) == fast_write(quick, fields) == apache_write() == body
    assert encoder.encode(typed) == value
    yield "encode", "fastavro", lambda: fast_write(full, with_types)
    yield "encode", "fastavro-plain", lambda: fast_write(quick, fields)
    yield "encode", "apache", apache_write
    yield "encode", "ours", lambda: encoder.encode(typed)
    yield "decode", "fastavro", lambda: fast_read(full)
    yield "decode", "fastavro-plain", lambda: fast_read(quick)
    yield "decode", "fastavro-some", lambda: fast_read(quick, some)
    yield "decode", "fastavro-strict", strict
    yield "decode", "apache", lambda: apache_reader.read(avro.io.BinaryDecoder(io.BytesIO(body)))
    yield "decode", "ours", lambda: decoder.decode(value)
    if find_spec("cavro"):
        import cavro  # type: ignore[import-not-found]

        compiled = cavro.Schema(json.dumps(plain))
        assert compiled.binary_encode(fields) == body
        yield "encode", "cavro", lambda: compiled.binary_encode(fields)
        yield "decode", "cavro", lambda: compiled.binary_decode(body)


def measure(rounds: int) -> list[dict[str, Any]]:
    """Return a row for each example and direction: the median ns of each program."""
    table = {
        (f"{record} {version}", direction, program): (run, _repeat(run), list[float]())
        for record, version, name in CASES
        for direction, program, run in operations(record, version, name)
    }
    for number in range(rounds):
        say(f"round {number + 1} of {rounds}")
        for run, times, measured in table.values():
            measured.append(_ns(run, times))
    rows: dict[tuple[str, str], dict[str, float]] = {}
    for (case, direction, program), (_, _, measured) in table.items():
        rows.setdefault((case, direction), {})[program] = median(measured)
    return [
        {
            "record": case,
            "direction": direction,
            "ns": {program: round(ns) for program, ns in programs.items()},
            "ratio_to_fastavro": _ratio(programs, "fastavro"),
            "ratio_to_fastavro_plain": _ratio(programs, "fastavro-plain"),
        }
        for (case, direction), programs in rows.items()
    ]


def _ratio(programs: dict[str, float], reference: str) -> float:
    return float(round(Decimal(programs["ours"]) / Decimal(programs[reference]), 2))


def _repeat(run: Operation) -> int:
    """Return how often an operation fits into a round."""
    return max(1, int(ROUND_S * 1e9 / _ns(run, 200)))


def _ns(run: Operation, times: int) -> float:
    began_ns = time.perf_counter_ns()
    for _ in range(times):
        run()
    return (time.perf_counter_ns() - began_ns) / times


def main() -> None:
    """Measure, and print a table or JSON."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rounds", type=int, default=9)
    options.add_argument("--json", action="store_true")
    chosen = options.parse_args()
    rows = measure(chosen.rounds)
    if chosen.json:
        print(json.dumps(rows))
        return
    programs = list(dict.fromkeys(program for row in rows for program in row["ns"]))
    print("| record | direction |", " | ".join(programs), "| ours / fastavro | ours / fastavro-plain |")
    print("| --- | --- |", " | ".join("---" for _ in programs), "| --- | --- |")
    for row in rows:
        cells = " | ".join(str(row["ns"].get(program, "")) for program in programs)
        print(
            f"| {row['record']} | {row['direction']} | {cells} | {row['ratio_to_fastavro']} | "
            f"{row['ratio_to_fastavro_plain']} |"
        )


if __name__ == "__main__":
    main()
