"""Apache's `avro` for Python. Called as README.md says."""

import sys

from tests.readers import apache_avro, canonical, topic_contents


def main(bootstrap_servers: str, wire_format: str, where: str, *topics: str) -> None:
    decode = apache_avro.decoder(wire_format, where)
    for record in topic_contents.read(bootstrap_servers, topics):
        print(canonical.line(record, decode(record.value)))  # noqa: T201


if __name__ == "__main__":
    main(*sys.argv[1:])
