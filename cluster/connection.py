"""librdkafka configurations: what we insist on, what we prefer, and whatever the user says."""

import logging
import re
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from confluent_kafka import KafkaException

from kinguin_streams.cluster.settings import KafkaSettings
from kinguin_streams.schemas.topics import MAX_RECORD_BYTES
from kinguin_streams.telemetry.operator_error import OperatorError
from kinguin_streams.telemetry.repeats import Repeats


class _Repeats(logging.Filter):
    """Passes a line on, and the same one again only after a while: while a broker is away they come many times a second."""

    def __init__(self) -> None:
        super().__init__()
        self._repeats = Repeats()

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether to log it. Lines that differ only in how long an attempt took are the same line."""
        line = re.sub(r"\(after \d+ms", "(after", record.getMessage())
        return self._repeats.unsaid(line, record.created) is not None


# librdkafka writes up to 20 lines a second to stderr while a broker is away; every client is given this logger instead.
CLIENT_LOGGER = logging.getLogger("librdkafka")
CLIENT_LOGGER.addFilter(_Repeats())

# Each of these is a promise of ours; another value would break it silently, so it is refused, not overridden.
_PRODUCER_PROMISES = {
    "acks": "all",  # a 2xx means: every in-sync replica has it
    "enable.idempotence": True,  # librdkafka's own retries neither duplicate nor reorder
    "partitioner": "murmur2_random",  # the Java client's choice: the same key lands on the same partition from any language
}
_CONSUMER_PROMISES = {
    "enable.auto.commit": False,  # offsets follow the state, they never lead it
    "enable.auto.offset.store": False,
    "auto.offset.reset": "error",  # "latest", the default, would skip silently what retention has not yet taken
}
# The same promises under librdkafka's other names for them.
_ALIASES = {"request.required.acks": "acks"}

Client = TypeVar("Client")


def new_client(kind: Callable[..., Client], config: Mapping[str, Any]) -> Client:
    """Return a client of confluent_kafka: Producer, Consumer or AdminClient. It connects by itself, later.

    Raises OperatorError("kafka_config_refused") for what only librdkafka can tell: a key that it does not know, a value
    that is none, a file of certificates that is not there.
    """
    try:
        return kind(dict(config), logger=CLIENT_LOGGER)
    except (KafkaException, TypeError, ValueError) as error:
        why = error.args[0].str() if isinstance(error, KafkaException) else str(error)
        raise OperatorError(
            "kafka_config_refused",
            f"The Kafka client refuses its configuration: {why}.",
            "Correct KINGUIN_KAFKA__CONFIG or KINGUIN_KAFKA__BOOTSTRAP_SERVERS.",
        ) from error


def base_config(kafka: KafkaSettings, client_id: str) -> dict[str, Any]:
    """Return what every client needs. Raises OperatorError("no_bootstrap_servers") if nobody said where Kafka is."""
    if not kafka.bootstrap_servers:
        raise OperatorError(
            "no_bootstrap_servers",
            "Nobody said where Kafka is.",
            "Set KINGUIN_KAFKA__BOOTSTRAP_SERVERS=host:port, or start a local one with `kinguin-streams kafka start`.",
        )
    return {"client.id": client_id, **kafka.config, "bootstrap.servers": kafka.bootstrap_servers}


def producer_config(
    kafka: KafkaSettings, *, client_id: str, delivery_timeout_s: float = 30.0, queue_records: int = 10_000
) -> dict[str, Any]:
    """Return a producer's configuration.

    delivery_timeout_s: when librdkafka gives a record up; longer than any caller waits, so that a late report exists.
    queue_records: how many records may wait in memory before `produce` refuses more.
    Raises OperatorError("kafka_config_refused") if the user's keys contradict a promise.
    """
    preferred = {
        "linger.ms": 0,  # measured: 5 ms cost a lone request 6 ms and gained nothing under load; batches form by themselves
        "message.timeout.ms": round(delivery_timeout_s * 1000),
        # The topics' max.message.bytes is a limit on whole batches: of librdkafka's default of 1 MB, the broker refused
        # every record of a burst as too large. The first record of a batch may exceed this, alone.
        "batch.size": MAX_RECORD_BYTES // 2,
        "queue.buffering.max.messages": queue_records,
        "queue.buffering.max.kbytes": 65_536,
        "socket.nagle.disable": True,
    }
    return _with_promises({**preferred, **base_config(kafka, client_id)}, _PRODUCER_PROMISES)


def consumer_config(kafka: KafkaSettings, *, group_id: str, client_id: str) -> dict[str, Any]:
    """Return a consumer's configuration. Raises OperatorError("kafka_config_refused") as producer_config does."""
    preferred = {
        "partition.assignment.strategy": "range",  # keeps equal partitions of the order topics in one process
        "enable.partition.eof": False,
        "isolation.level": "read_committed",
    }
    config = {**preferred, **base_config(kafka, client_id), "group.id": group_id}
    if config.get("group.protocol") == "consumer":  # the broker assigns; librdkafka refuses the classic key beside it
        del config["partition.assignment.strategy"]
        config.setdefault("group.remote.assignor", "range")
    return _with_promises(config, _CONSUMER_PROMISES)


def admin_config(kafka: KafkaSettings, client_id: str = "kinguin-streams-admin") -> dict[str, Any]:
    """Return an admin client's configuration."""
    return base_config(kafka, client_id)


def _with_promises(config: Mapping[str, Any], promises: Mapping[str, Any]) -> dict[str, Any]:
    for key, value in config.items():
        promised = promises.get(_ALIASES.get(key, key))
        if promised is not None and str(value).lower() not in _spellings(promised):
            raise OperatorError(
                "kafka_config_refused",
                f"KINGUIN_KAFKA__CONFIG sets {key}={value}, and kinguin-streams promises {key}={promised}.",
                "Remove the key: without it, events that were acknowledged can be lost or counted wrongly.",
            )
    return {**{key: value for key, value in config.items() if key not in _ALIASES}, **promises}


def _spellings(promised: object) -> set[str]:
    return {"-1", "all"} if promised == "all" else {str(promised).lower()}
