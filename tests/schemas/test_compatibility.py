"""What may be released, and the bad pairs that must not be: a check that was never seen to fail checks nothing."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from kinguin_streams.cli.schemas import app
from kinguin_streams.schemas.compatibility import CandidateVersion, Finding, check, check_released
from kinguin_streams.schemas.names import RecordName
from kinguin_streams.schemas.versions import RECORD_NAMES, fingerprint_of, shipped
from kinguin_streams.telemetry.operator_error import OperatorError

Schema = dict[str, Any]
Change = Callable[[Schema], None]

TIME = {"type": "long", "logicalType": "timestamp-millis"}
MONEY = {"type": "bytes", "logicalType": "decimal", "precision": 18, "scale": 6}


def base() -> Schema:
    """A version 1 with one field of each kind; nothing is wrong with it."""
    line = {"type": "record", "name": "Line", "doc": "A line.", "fields": [_field("sku", "string")]}
    return {
        "type": "record",
        "name": "Purchase",
        "namespace": "kinguin.v1",
        "doc": "For this test.",
        "fields": [
            _field("id", "string"),
            _field("count", "long"),
            _field("small", "int"),
            _field("at", TIME),
            _field("total", MONEY),
            _field("seenAt", ["null", TIME], default=None),
            _field("note", ["null", "string"], default=None),
            _field("paid", "boolean", default=False),
            _field("lines", {"type": "array", "items": line}, default=[]),
            _field(
                "size",
                {"type": "enum", "name": "Size", "symbols": ["S", "M"], "default": "S", "doc": "A size."},
                default="S",
            ),
        ],
    }


def _field(name: str, kind: Any, **more: Any) -> Schema:
    return {"name": name, "type": kind, "doc": f"The {name}.", **more}


def get(schema: Schema, name: str) -> Any:
    return next(field for field in schema["fields"] if field["name"] == name)


def add(name: str, kind: Any, **more: Any) -> Change:
    return lambda schema: schema["fields"].append(_field(name, kind, **more))


def remove(name: str) -> Change:
    return lambda schema: schema["fields"].remove(get(schema, name))


def retype(name: str, kind: Any, **more: Any) -> Change:
    return lambda schema: get(schema, name).update(type=kind, **more)


def rename(name: str, to: str, **more: Any) -> Change:
    return lambda schema: get(schema, name).update(name=to, **more)


def top(**attributes: Any) -> Change:
    return lambda schema: schema.update(attributes)


def line(change: Change) -> Change:
    return lambda schema: change(get(schema, "lines")["type"]["items"])


def both(*changes: Change) -> Change:
    def change_all(schema: Schema) -> None:
        for change in changes:
            change(schema)

    return change_all


NEW_FIELD = add("shop", ["null", "string"], default=None)  # so that a pair differs in its fingerprint too


def history(*changes: Change) -> list[CandidateVersion]:
    """Return version 1, and a version for each change of the one before."""
    schema = base()
    versions = [CandidateVersion(record="purchase", version=1, text=json.dumps(schema))]
    for number, change in enumerate(changes, start=2):
        change(schema)
        versions.append(CandidateVersion(record="purchase", version=number, text=json.dumps(schema)))
    return versions


def test_the_shipped_versions_may_be_released() -> None:
    versions = [
        CandidateVersion(record=record, version=schema.version, text=schema.text)
        for record in RECORD_NAMES
        for schema in shipped().versions(record)
    ]
    assert check(versions) == ()


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param([], id="a first version"),
        pytest.param([NEW_FIELD], id="a nullable field comes"),
        pytest.param([NEW_FIELD, remove("shop")], id="a nullable field comes and goes, and version 3 is version 1"),
        pytest.param([remove("note")], id="a nullable field goes"),
        pytest.param([remove("paid")], id="a field with a default goes"),
        pytest.param([add("gift", "boolean", default=False)], id="a field with a default comes"),
        pytest.param(
            [add("tags", {"type": "array", "items": "string"}, default=["new"])], id="a list with a default comes"
        ),
        pytest.param([add("tags", {"type": "map", "values": "int"}, default={"a": 2**31 - 1})], id="a map likewise"),
        pytest.param([add("refunded", ["null", MONEY], default=None)], id="nullable money comes"),
        pytest.param([line(NEW_FIELD)], id="a nullable field comes within a list"),
        pytest.param([add("tags", ["null", {"type": "array", "items": "string"}], default=None)], id="a list comes"),
        pytest.param([both(NEW_FIELD, top(doc="Better words."))], id="documentation changes beside a field"),
        pytest.param([remove("note"), NEW_FIELD, remove("paid")], id="several versions, each good"),
    ],
)
def test_a_good_history_has_no_findings(changes: list[Change]) -> None:
    findings = check(history(*changes))
    if len(changes) == 2:  # the one that returns to version 1 shares its fingerprint, and only that is said
        assert [(finding.version, finding.against, finding.kind) for finding in findings] == [(3, 1, "fingerprint")]
    else:
        assert findings == ()


@pytest.mark.parametrize(
    ("change", "kind", "says"),
    [
        pytest.param(add("shop", "string"), "incompatible", "shop", id="a field without a default comes"),
        pytest.param(remove("id"), "incompatible", "id", id="a field without a default goes"),
        pytest.param(rename("id", "orderId"), "incompatible", "orderId", id="a field is renamed"),
        pytest.param(rename("id", "orderId", aliases=["id"]), "incompatible", "id", id="renamed with an alias"),
        pytest.param(
            rename("note", "remark", aliases=["note"]),
            "lint",
            "field remark: Apache's Python reader ignores an alias",
            id="a nullable field renamed with an alias",
        ),
        pytest.param(
            add("digest", "bytes", default=""),
            "lint",
            'field digest: readers do not agree on the default ""',
            id="bytes with a default: fastavro hands out a text",
        ),
        pytest.param(add("paidAt", TIME, default=0), "lint", "on the default 0; use null", id="a time with a default"),
        pytest.param(
            add("times", {"type": "array", "items": TIME}, default=[0]),
            "lint",
            "on the default [0]",
            id="times likewise",
        ),
        pytest.param(add("qty", "long", default=True), "lint", "on the default true; use", id="a number that is none"),
        pytest.param(add("qty", "long", default=2**63), "lint", "on the default 9223372036854775808", id="65 bits"),
        pytest.param(
            add("tags", {"type": "map", "values": {"type": "array", "items": "int"}}, default={"a": [1, 2**31]}),
            "lint",
            'on the default {"a": [1, 2147483648]}',
            id="a default with something wrong deep within",
        ),
        pytest.param(
            add("tags", {"type": "map", "values": "long"}, default={"\ud800": 1}),
            "lint",
            'on the default {"\\ud800": 1}',
            id="a key that is no text",
        ),
        pytest.param(
            add("tags", {"type": "array", "items": ["null", "string"]}, default=["a"]),
            "lint",
            'on the default ["a"]',
            id="an item of another branch than the first: Avro takes the default for that",
        ),
        pytest.param(top(aliases=["Buy"]), "lint", "record kinguin.v1.Purchase: Apache's", id="an alias of the record"),
        pytest.param(
            add("day", ["null", {"type": "string", "logicalType": "date"}], default=None),
            "lint",
            "field day: readers ignore the logical type date on string",
            id="a logical type where it does not belong",
        ),
        pytest.param(
            add("day", ["null", {"type": "int", "logicalType": 7}], default=None),
            "lint",
            "field day: readers ignore the logical type 7 on int",
            id="a logical type that is no name",
        ),
        pytest.param(
            add("fee", ["null", {"type": "bytes", "logicalType": "decimal", "scale": 2}], default=None),
            "lint",
            "field fee: readers ignore a decimal of precision None",
            id="a decimal without a precision",
        ),
        pytest.param(
            retype("id", "bytes"),
            "incompatible",
            "field id: a reader of version 1 cannot read what version 2 writes: bytes where it wants string",
            id="text becomes bytes",
        ),
        pytest.param(
            retype("count", "string"),
            "incompatible",
            "field count: a reader of version 1 cannot",
            id="a number becomes text",
        ),
        pytest.param(
            retype("small", "long"),
            "incompatible",
            "writes: long where it wants int",
            id="int to long: the old cannot read",
        ),
        pytest.param(
            retype("count", "int"),
            "incompatible",
            "a reader of version 2 cannot read what version 1",
            id="long to int: the new cannot read",
        ),
        pytest.param(
            retype("id", ["null", "string"], default=None),
            "incompatible",
            "field id: a reader of version 1 cannot read what version 2 writes: null where it wants string",
            id="a text may become null",
        ),
        pytest.param(
            retype("lines", {"type": "map", "values": "string"}, default={}),
            "incompatible",
            "field lines: a reader of version 1 cannot read what version 2 writes: map of string where it wants list of",
            id="a list becomes a map",
        ),
        pytest.param(line(add("qty", "long")), "incompatible", "qty", id="a field without a default within a list"),
        pytest.param(
            lambda schema: get(schema, "size")["type"].update(name="Extent"),
            "incompatible",
            "enum kinguin.v1.Extent where it wants enum kinguin.v1.Size",
            id="an enum renamed",
        ),
        pytest.param(
            top(name="Order"),
            "incompatible",
            "record kinguin.v1.Order where it wants record kinguin.v1.Purchase",
            id="the record is renamed",
        ),
        pytest.param(
            top(namespace="kinguin.v2"),
            "incompatible",
            "the record: a reader of version 1 cannot read",
            id="the namespace changes",
        ),
        pytest.param(
            retype("at", {"type": "long", "logicalType": "timestamp-micros"}),
            "meaning",
            "field at: a reader of version 1 misreads what version 2 writes: logicalType was timestamp-millis and is timestamp-micros",
            id="times 1000 times as large",
        ),
        pytest.param(
            retype("seenAt", ["null", "long"]),
            "meaning",
            "field seenAt: a reader of version 1 misreads",
            id="a nullable time is a number",
        ),
        pytest.param(
            retype("count", TIME),
            "meaning",
            "field count: a reader of version 1 misreads what version 2 writes: logicalType was none and is timestamp-millis",
            id="number to time",
        ),
        pytest.param(
            retype("total", {**MONEY, "scale": 2}),
            "meaning",
            "misreads what version 2 writes: scale was 6 and is 2",
            id="scale of money",
        ),
        pytest.param(
            retype("total", {**MONEY, "precision": 20}),
            "meaning",
            "misreads what version 2 writes: precision was 18 and is 20",
            id="precision of money",
        ),
        pytest.param(
            lambda schema: get(schema, "paid").update(default=True),
            "meaning",
            "readers of version 1 and version 2 would put in different values: the default was false and is true",
            id="a default changes",
        ),
        pytest.param(
            lambda schema: get(schema, "size")["type"].update(symbols=["M", "S"]),
            "meaning",
            "the order of symbols was S, M and is M, S",
            id="symbols change places",
        ),
        pytest.param(
            lambda schema: get(schema, "size")["type"].update(symbols=["S"]),
            "incompatible",
            "it does not know the symbol M",
            id="a symbol goes",
        ),
        pytest.param(
            lambda schema: get(schema, "size")["type"]["symbols"].append("L"),
            "incompatible",
            "a reader of version 1 cannot read what version 2 writes: it does not know the symbol L, and not every reader",
            id="a last symbol comes",
        ),
        pytest.param(
            lambda schema: get(schema, "size")["type"].update(default="M"),
            "meaning",
            "the default symbol was S and is M",
            id="the default symbol changes",
        ),
        pytest.param(
            line(retype("sku", {"type": "string", "logicalType": "uuid"})),
            "meaning",
            "field lines[].sku: a reader of version 1 misreads",
            id="a logical type within a list",
        ),
        pytest.param(top(doc="Other words."), "fingerprint", "purchase version 1", id="only documentation changes"),
        pytest.param(
            lambda schema: get(schema, "paid").update(default=True), "fingerprint", "not a version", id="only a default"
        ),
        pytest.param(retype("total", {**MONEY, "scale": 2}), "fingerprint", "not a version", id="only a scale"),
        pytest.param(
            add("weight", ["null", "double"], default=None), "lint", "field weight: money", id="a binary fraction"
        ),
        pytest.param(
            add("weights", {"type": "array", "items": {"type": "double"}}, default=[]),
            "lint",
            "field weights[]: money",
            id="binary fractions in a list",
        ),
        pytest.param(
            add("until", ["null", {"type": "long", "logicalType": "timestamp-micros"}], default=None),
            "lint",
            "field until: times",
            id="another unit of time",
        ),
        pytest.param(
            add("shop", ["string", "null"], default="x"), "lint", "field shop: what may be absent", id="null last"
        ),
        pytest.param(
            add("shop", ["null", "string", "long"], default=None), "lint", "field shop: what may", id="three branches"
        ),
        pytest.param(
            lambda schema: schema["fields"].append({"name": "x", "type": ["null", "string"], "default": None}),
            "lint",
            "field x has no doc",
            id="a field without documentation",
        ),
        pytest.param(
            line(lambda record: record["fields"].append({"name": "x", "type": ["null", "string"], "default": None})),
            "lint",
            "field lines[].x has no doc",
            id="a field within a list without documentation",
        ),
        pytest.param(
            add("kind", {"type": "enum", "name": "Kind", "symbols": ["A"], "doc": "k"}, default="A"),
            "lint",
            "field kind: an enum has a default",
            id="an enum without a default",
        ),
        pytest.param(
            add("parent", ["null", "Purchase"], default=None), "lint", "field parent: a record must not", id="recursion"
        ),
        pytest.param(
            line(add("of", ["null", "kinguin.v1.Purchase"], default=None)),
            "lint",
            "field lines[].of: a record must not",
            id="recursion from within a list",
        ),
    ],
)
def test_a_bad_pair_is_refused_by_name(change: Change, kind: str, says: str) -> None:
    findings = check(history(change))
    assert [f for f in findings if f.kind == kind and f.version == 2 and says in f.message], _words(findings)
    assert "no reason given" not in _words(findings)


def test_a_version_is_held_against_every_earlier_one_not_only_the_last() -> None:
    """Avro's plain FULL would pass this: what version 2 dropped comes back in version 3 as something else."""
    findings = check(history(remove("note"), add("note", ["null", "long"], default=None)))
    assert [(finding.version, finding.against, finding.kind) for finding in findings] == [(3, 1, "incompatible")] * 2


def test_a_missing_number_is_said() -> None:
    first, second, third = history(NEW_FIELD, remove("note"))
    assert "version 2 is missing" in _words(check([first, third]))
    assert "version 1 is missing" in _words(check([second, third]))


def test_order_of_the_files_does_not_matter() -> None:
    versions = history(NEW_FIELD, remove("note"))
    assert check(versions[::-1]) == ()


def test_records_of_different_names_must_not_share_a_fingerprint() -> None:
    twin = CandidateVersion(record="other", version=1, text=json.dumps(base()))
    assert [finding.kind for finding in check([*history(), twin])] == ["fingerprint"]


# Against what is released


def _released(record: RecordName, change: Change = lambda _: None) -> CandidateVersion:
    """The version 1 that is shipped, with a change."""
    schema = json.loads(shipped().get(record, 1).text)
    change(schema)
    return CandidateVersion(record=record, version=1, text=json.dumps(schema))


def test_what_is_as_it_was_released_has_no_findings_nor_has_a_change_of_words() -> None:
    versions = [_released(record) for record in RECORD_NAMES]
    assert check_released([*versions[1:], _released("product.update", top(doc="Better words."))], shipped()) == ()


@pytest.mark.parametrize(
    ("change", "field", "says"),
    [
        pytest.param(
            retype("updatedAt", "long"),
            "updatedAt",
            "a reader of released version 1 misreads what version 1 writes: logicalType was timestamp-millis and is none",
            id="a logical type goes",
        ),
        pytest.param(
            retype("updatedAt", {"type": "long", "logicalType": "timestamp-micros"}),
            "updatedAt",
            "logicalType was timestamp-millis and is timestamp-micros",
            id="another unit",
        ),
        pytest.param(
            retype("store", "string", default=""),
            None,
            "it is not as it was released: another default or alias",
            id="a default, on which a later version would count and no deployed reader has",
        ),
    ],
)
def test_a_released_version_that_is_edited_under_its_own_fingerprint_is_refused(
    change: Change, field: str | None, says: str
) -> None:
    """A record with one version has nothing else to be compared with."""
    edited = _released("order.status", change)
    assert fingerprint_of(edited.text) == shipped().get("order.status", 1).fingerprint
    [finding] = check_released([edited], shipped())
    assert (finding.record, finding.version, finding.against) == ("order.status", 1, 1)
    assert (finding.kind, finding.source, finding.field) == ("meaning", "released", field)
    assert says in finding.message


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        "7",
        '"string"',
        '["null", "string"]',
        '{"type": "record"}',
        '{"type": "record", "name": "X"}',
        '{"type": "record", "name": "X", "fields": [{"name": "a", "type": "nonsense"}]}',
        '{"type": "record", "name": "X", "fields": [{"name": "a", "type": "long", "default": "x"}]}',
        '{"type": "record", "name": "9", "fields": []}',
        '{"type": "enum", "name": "X", "symbols": ["A"]}',
        '{"type": "bytes", "logicalType": "decimal", "precision": 2, "scale": 1}',
        "[" * 100_000,
    ],
)
def test_what_is_no_schema_is_unreadable_and_nothing_else(text: str) -> None:
    findings = check([CandidateVersion(record="x", version=1, text=text)])
    assert [finding.kind for finding in findings] == ["unreadable"]


# The command


def test_the_command_passes_the_shipped_schemas() -> None:
    result = _run("check")
    assert (result.exit_code, result.stdout) == (0, "")
    assert "0 findings" in result.stderr


def test_the_command_passes_a_good_folder(tmp_path: Path) -> None:
    _write(tmp_path, history(NEW_FIELD))
    assert (_run("check", "--path", str(tmp_path)).exit_code, _run("check").exit_code) == (0, 0)


def test_the_command_prints_a_line_for_each_finding_and_exits_1(tmp_path: Path) -> None:
    _write(tmp_path, history(retype("total", {**MONEY, "scale": 2})))
    result = _run("check", "--path", str(tmp_path))
    assert result.exit_code == 1
    meaning, fingerprint, *warnings = result.stdout.splitlines()
    assert meaning == (
        "purchase version 2 against version 1: meaning: field total: a reader of version 1 misreads what version 2 writes: "
        "scale was 6 and is 2"
    )
    assert fingerprint.startswith("purchase version 2 against version 1: fingerprint: the same fingerprint as purchase")
    assert [line.partition(" no reader")[0] for line in warnings] == [
        "warning: purchase version 1: codec: field size:",
        "warning: purchase version 2: codec: field total:",
        "warning: purchase version 2: codec: field size:",
    ]
    assert result.stderr == "2 versions checked, 5 findings\n"


def test_the_command_refuses_a_released_version_with_another_meaning(tmp_path: Path) -> None:
    _write(tmp_path, [_released("order.status", retype("updatedAt", "long"))])
    result = _run("check", "--path", str(tmp_path))
    assert result.exit_code == 1
    assert result.stdout == (
        "order.status version 1 against released version 1: meaning: field updatedAt: a reader of released version 1 misreads "
        "what version 1 writes: logicalType was timestamp-millis and is none\n"
    )


def test_the_command_prints_one_object_for_machines(tmp_path: Path) -> None:
    _write(tmp_path, history(remove("id")))
    result = _run("check", "--path", str(tmp_path), "--json")
    assert result.exit_code == 1
    [answer] = [json.loads(line) for line in result.stdout.splitlines()]
    assert answer["checked"] == 2
    assert [(f["record"], f["version"], f["against"], f["kind"], f["severity"]) for f in answer["findings"]] == [
        ("purchase", 2, 1, "incompatible", "error"),
        ("purchase", 1, None, "codec", "warning"),  # an enum
        ("purchase", 2, None, "codec", "warning"),
    ]
    assert json.loads(_run("check", "--json").stdout) == {"checked": 9, "findings": []}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        pytest.param("readme.txt", b"", id="no schema"),
        pytest.param("order/latest.avsc", b"{}", id="no number"),
        pytest.param("order/1.avsc", b"\xff", id="not text"),
    ],
)
def test_a_folder_without_schemas_is_the_callers_mistake(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(content)
    result = _run("check", "--path", str(tmp_path))
    assert isinstance(result.exception, OperatorError)
    assert result.exception.code == "no_schemas"
    assert str(tmp_path) in result.exception.what


def test_list_names_every_version_and_the_ones_that_are_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KINGUIN_SCHEMAS__WRITE", '{"product.update": 2}')
    rows = json.loads(_run("list", "--json").stdout)["schemas"]
    assert [(row["record"], row["version"], row["written"]) for row in rows] == [
        ("product.update", 1, False),
        ("product.update", 2, True),
        ("product.update", 3, False),
        ("order.status", 1, True),
        ("order.complete", 1, True),
        ("dead-letter", 1, True),
        ("dead-letter.trail", 1, True),
        ("order.state", 1, True),
        ("product.state", 1, True),
    ]
    assert [row["fingerprint"] for row in rows] == [
        shipped().get(row["record"], row["version"]).fingerprint.hex() for row in rows
    ]


def _run(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments)


def _write(folder: Path, versions: list[CandidateVersion]) -> None:
    for version in versions:
        file = folder / version.record / f"{version.version}.avsc"
        file.parent.mkdir(exist_ok=True)
        file.write_text(version.text)


def _words(findings: tuple[Finding, ...]) -> str:
    return "\n".join(f"{finding.version} {finding.kind}: {finding.message}" for finding in findings)
