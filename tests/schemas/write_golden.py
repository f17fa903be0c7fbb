"""Write the golden bytes of a new example, once and for ever.

    uv run python tests/schemas/write_golden.py order.status/1/canceled

reads schemas/examples/order.status/1/canceled.json, the body as the sender sends it, and writes canceled.avro beside it:
the record value that schema version 1 makes of it. An existing golden file is never written again: what is in a topic
cannot be changed, so a codec that writes other bytes is wrong, not the file.
"""

import sys
from pathlib import Path

from kinguin_streams.ingress.payloads import InvalidWebhook, read_event
from kinguin_streams.schemas.codec import Encoder
from kinguin_streams.schemas.events import EVENT_NAMES, StoreName
from kinguin_streams.schemas.versions import shipped

EXAMPLES = Path(__file__).parents[2] / "schemas" / "examples"
STORE = StoreName("default")
RECEIVED_AT_MS = 1_615_204_800_123  # 2021-03-08T12:00:00.123Z


def write_golden(case: str, examples: Path = EXAMPLES) -> str:
    """Write the golden file of a case and return "", or return why not. case: <event>/<version>/<name>."""
    event_name, version, name = case.split("/")
    event = next((event for event in EVENT_NAMES if event == event_name), None)
    if event is None or not version.isdecimal():
        return f"{case} is not <event>/<version>/<name>"
    if int(version) not in [schema.version for schema in shipped().versions(event)]:
        return f"{event} has no version {version}"
    body_file, golden_file = examples / event / version / f"{name}.json", examples / event / version / f"{name}.avro"
    try:
        record = read_event(STORE, event, body_file.read_bytes(), RECEIVED_AT_MS)
        with golden_file.open("xb") as golden:
            golden.write(Encoder({event: int(version)}).encode(record))
    except (OSError, InvalidWebhook) as error:
        return str(error)
    return ""


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1].count("/") != 2:
        sys.exit(__doc__)
    sys.exit(write_golden(sys.argv[1]) or None)
