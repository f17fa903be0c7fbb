"""Schema ids from a registry with Confluent's API."""

import re
import time
from typing import Any

from kinguin_streams.cluster.settings import RegistrySettings
from kinguin_streams.schemas.codec import UnknownSchema
from kinguin_streams.schemas.topics import Topics
from kinguin_streams.schemas.versions import SchemaVersion, fingerprint_of, shipped
from kinguin_streams.telemetry.operator_error import OperatorError

ASK_AGAIN_AFTER_S = 5.0
# The client's default is to wait for ever, in the one thread that consumes.
REQUEST_TIMEOUT_S = 5.0


class RegistryIds:
    """Ids of our schemas under `<topic>-value`; an implementation of schemas.codec.SchemaIds."""

    def __init__(self, settings: RegistrySettings, topics: Topics) -> None:
        """settings: with a url; `mock://name` is an in-memory registry of this process.

        Raises OperatorError("registry_extra_missing") where the extra `registry` is not installed.
        """
        try:
            from confluent_kafka.schema_registry import Schema, SchemaRegistryClient
        except ImportError as missing:
            raise OperatorError(
                "registry_extra_missing",
                f"KINGUIN_REGISTRY__URL is set, and the registry client cannot be imported: {missing}.",
                "Install kinguin-streams[registry], or unset it to write single-object encoding.",
            ) from missing
        config: dict[str, Any] = {
            "url": settings.url,
            "timeout": REQUEST_TIMEOUT_S,
            "max.retries": 1,
            "retries.wait.ms": 200,
        }
        if settings.username is not None and settings.password is not None:
            config["basic.auth.user.info"] = f"{settings.username}:{settings.password.get_secret_value()}"
        self._client = SchemaRegistryClient.new_client(config)
        self._schema_type = Schema
        # Without a user and password in it: it stands in messages.
        self._shown = _without_credentials(settings.url or "")
        self._topics = topics
        self._known: dict[int, SchemaVersion] = {}
        self._unknown_until: dict[int, float] = {}

    def id_of(self, schema: SchemaVersion) -> int:
        """Return the id of a shipped version, registering it if the registry does not have it yet.

        Raises OperatorError("registry_refused") if the registry does not answer or refuses the schema.
        """
        subject = f"{self._topics.name(schema.record)}-value"
        try:
            schema_id = int(self._client.register_schema(subject, self._schema_type(schema.text, "AVRO")))
        except Exception as error:  # its own, its HTTP library's, and what a strange answer makes of either
            raise OperatorError(
                "registry_refused",
                f"The registry at {self._shown} did not take {schema.record} version {schema.version}: "
                f"{_without_credentials(str(error))}",
                "Check KINGUIN_REGISTRY__URL and its credentials, and the subject's compatibility level.",
            ) from error
        self._known[schema_id] = schema
        return schema_id

    def schema_of(self, schema_id: int) -> SchemaVersion:
        """Return the shipped version behind an id. Asks the registry at most once an id and interval.

        Raises UnknownSchema if the id is none of ours, or the registry cannot be asked now: the caller waits either way.
        """
        if (known := self._known.get(schema_id)) is not None:
            return known
        if time.monotonic() < self._unknown_until.get(schema_id, 0.0):
            raise UnknownSchema(f"schema id {schema_id} was unknown a moment ago")
        self._unknown_until[schema_id] = time.monotonic() + ASK_AGAIN_AFTER_S
        try:
            schema = shipped().by_fingerprint(fingerprint_of(self._client.get_schema(schema_id).schema_str or ""))
        except Exception as error:  # as above; and the id may be that of a Protobuf schema
            raise UnknownSchema(
                f"the registry gives no Avro schema for id {schema_id}: {_without_credentials(str(error))}"
            ) from error
        if schema is None:
            raise UnknownSchema(f"schema id {schema_id} is none of the shipped schemas")
        self._known[schema_id] = schema
        return schema


def _without_credentials(text: str) -> str:
    """Return the text with what stands before the @ of a URL taken out: a client's error may repeat the URL."""
    return re.sub(r"://[^/\s]*@", "://", text)
