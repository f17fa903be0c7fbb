"""kcat. Called as README.md says.

kcat can decode Avro by itself (`-s value=avro -r URL`, Confluent wire format), but only if it was built with libserdes:
`kcat -V` then lists "Avro". Debian's build does not, so kcat prints bytes and Apache's `avro` decodes them.
"""

import re
import subprocess
import sys
import uuid

from tests.readers import apache_avro, canonical

# kcat prints headers as name=value,name=value and escapes nothing; only ce_subject, the key, may hold a comma.
_HEADERS = re.compile(
    rb"(ce_specversion)=(.*?),(ce_id)=(.*?),(ce_source)=(.*?),(ce_type)=(.*?),(ce_time)=(.*?),"
    rb"(ce_subject)=(.*),(content-type)=([a-z/]*)(?:,(traceparent)=([0-9a-f-]*))?",
    re.DOTALL,
)


def main(bootstrap_servers: str, wire_format: str, where: str, *topics: str) -> None:
    decode = apache_avro.decoder(wire_format, where)
    end_of_headers = uuid.uuid4().hex.encode()
    for topic in topics:
        # %K and %R are the lengths of the key, in decimal, and of the value, as four bytes.
        form = f"%p %o %T %K\n%k%h{end_of_headers.decode()}%R%s"
        command = ["kcat", "-C", "-q", "-e", "-b", bootstrap_servers, "-t", topic, "-o", "beginning", "-f", form]
        rest = subprocess.run(command, stdout=subprocess.PIPE, check=True, timeout=60).stdout
        while rest:
            numbers, _, rest = rest.partition(b"\n")
            partition, offset, timestamp, key_length = (int(number) for number in numbers.split())
            key, rest = rest[:key_length], rest[key_length:]
            header_text, _, rest = rest.partition(end_of_headers)
            value_length = int.from_bytes(rest[:4], "big")
            value, rest = rest[4 : 4 + value_length], rest[4 + value_length :]
            found = _HEADERS.fullmatch(header_text)
            assert found is not None, header_text
            parts = [part for part in found.groups() if part is not None]
            headers = [(name.decode(), content) for name, content in zip(parts[::2], parts[1::2], strict=True)]
            record = canonical.KafkaRecord(
                topic=topic,
                partition=partition,
                offset=offset,
                timestamp=timestamp,
                key=key,
                headers=headers,
                value=value,
            )
            print(canonical.line(record, decode(value)))  # noqa: T201


if __name__ == "__main__":
    main(*sys.argv[1:])
