"""The calls of a schema registry that we make: few enough that Apicurio, Karapace and Confluent's answer them alike.

    GET  schemas/ids/{id}
    GET  subjects/{subject}/versions, subjects/{subject}/versions/{version}
    POST subjects/{subject}/versions
    GET, PUT config/{subject}

Not the look-up by text (POST subjects/{subject}): what counts as the same text differs from registry to registry.
"""

import logging
import weakref
from dataclasses import dataclass
from typing import Any

import structlog

from kinguin_streams.cluster.registry_url import user_info_of, without_credentials, without_user
from kinguin_streams.cluster.settings import RegistrySettings
from kinguin_streams.telemetry.operator_error import OperatorError

log = structlog.get_logger()

GREATEST_ID = 2**31 - 1
"""Ids are Java's int, signed, though a frame has room for twice as many."""


class NotInRegistry(Exception):
    """The registry has answered: it has no such id, subject or level of its own (404)."""


class RegistryRefused(Exception):
    """The registry has answered that it will not take this schema or level (any other 4xx that asking again keeps)."""


class RegistryAway(Exception):
    """No answer that can be used: not reached, late, denied (401, 403), busy (429, 5xx), or no registry's answer at all."""


@dataclass(frozen=True, slots=True)
class RegisteredVersion:
    """A version under a subject. version: the registry's own count, which need not be ours."""

    version: int
    schema_id: int
    text: str


class RegistryClient:
    """One registry. Safe to call from any thread; every call asks it, nothing is remembered here."""

    def __init__(self, settings: RegistrySettings) -> None:
        """settings: the url `mock://name` is an in-memory registry of this client.

        Raises OperatorError: registry_not_set if there is no url, registry_extra_missing where the extra `registry` is not
        installed.
        """
        if settings.url is None:
            raise OperatorError(
                "registry_not_set",
                "No schema registry is set.",
                "Set KINGUIN_REGISTRY__URL to its Confluent-compatible API.",
            )
        try:
            # Here and not above: it takes 440 ms, and most commands never ask.
            from confluent_kafka.schema_registry import Schema, SchemaRegistryClient
        except ImportError as missing:
            raise OperatorError(
                "registry_extra_missing",
                f"KINGUIN_REGISTRY__URL is set, and the registry client cannot be imported: {missing}.",
                "Install kinguin-streams[registry], or unset it to write single-object encoding.",
            ) from missing
        self._client: Any = SchemaRegistryClient.new_client(_config(settings.url, settings))
        self._schema_type = Schema
        for library in ("httpx", "httpx2"):  # a line at INFO for every request
            logging.getLogger(library).setLevel(logging.WARNING)
        # Its connections outlive it otherwise. As a context manager it ends them in every release that we allow.
        weakref.finalize(self, self._client.__exit__)
        self.shown_url = without_credentials(settings.url).rstrip("/")
        """The URL as it may stand in messages and files."""

    def schema_text(self, schema_id: int) -> str:
        """Return the schema of an id as JSON text; "" if it is none in Avro.

        Raises NotInRegistry, RegistryAway.
        """
        if schema_id > GREATEST_ID:  # asked for it, a registry answers that there is no such page
            raise NotInRegistry("no registry gives such an id")
        try:
            schema = self._call("get_schema", schema_id)
        except RegistryRefused as error:  # an id that is none to this registry: it has answered, and is not away
            raise NotInRegistry(str(error)) from error
        return self._text_of(schema)

    def versions(self, subject: str) -> tuple[RegisteredVersion, ...]:
        """Return what is registered under a subject, oldest first; nothing if there is no such subject.

        Without a version that is listed and gone when it is asked for: somebody has just deleted it.
        Raises RegistryAway.
        """
        found = []
        try:
            for number in self._version_numbers(subject):
                try:
                    answer = self._call("get_version", subject, number)
                except NotInRegistry:
                    log.warning("registry_version_gone", subject=subject, version=number)
                else:
                    found.append(RegisteredVersion(number, int(answer.schema_id), self._text_of(answer.schema)))
        except (RegistryRefused, TypeError, ValueError, AttributeError) as error:
            raise RegistryAway(f"the registry at {self.shown_url} lists no versions of {subject}: {error}") from error
        return tuple(found)

    def _version_numbers(self, subject: str) -> list[int]:
        try:
            numbers = self._call("get_versions", subject)
        except NotInRegistry:
            return []
        if not isinstance(numbers, list):
            raise TypeError(f"no list but {type(numbers).__name__}")
        return sorted(int(number) for number in numbers)

    def register(self, subject: str, text: str) -> int:
        """Return the id of a schema that is now under the subject, whether or not it was there before.

        Raises RegistryRefused, RegistryAway.
        """
        try:
            return int(self._call("register_schema", subject, self._schema_type(text, "AVRO")))
        except NotInRegistry as error:  # of a registry that is to be told of subjects first
            raise RegistryRefused(str(error)) from error
        except (TypeError, ValueError) as error:
            raise RegistryAway(f"the registry at {self.shown_url} gives no id: {error}") from error

    def level(self, subject: str) -> str | None:
        """Return the compatibility level of the subject itself; None where it follows the registry's.

        Raises RegistryRefused where there are no levels, RegistryAway.
        """
        try:
            return str(self._call("get_compatibility", subject))
        except NotInRegistry:
            return None

    def set_level(self, subject: str, level: str) -> None:
        """Set the compatibility level of one subject. Raises RegistryRefused, RegistryAway."""
        try:
            self._call("set_compatibility", subject, level)
        except NotInRegistry as error:
            raise RegistryRefused(str(error)) from error

    def _text_of(self, schema: Any) -> str:
        """Return the JSON text of what the client takes for a schema: it makes one of every answer, also of {}."""
        if (schema.schema_type or "AVRO") != "AVRO":
            return ""
        if not isinstance(schema.schema_str, str) or not schema.schema_str:
            raise RegistryAway(f"the registry at {self.shown_url} answers without a schema")
        return schema.schema_str

    def _call(self, name: str, *arguments: Any) -> Any:
        # It keeps what it has once been told, and whoever asks here wants to know what is so now.
        self._client.clear_caches()
        try:
            return getattr(self._client, name)(*arguments)
        except Exception as error:  # its own, its HTTP library's, and what a strange answer makes of either
            raise _sorted_out(error, self.shown_url) from error


def away_error(away: RegistryAway, *, what: str = "The registry cannot be asked", then: str = "") -> OperatorError:
    """Return what to tell a person of a registry that is away. what: what does not go on. then: what else helps."""
    hint = f"Check KINGUIN_REGISTRY__URL, its credentials and certificates. {then}"
    return OperatorError("registry_away", f"{what}: {away}.", hint.rstrip())


def _config(url: str, settings: RegistrySettings) -> dict[str, Any]:
    user_info = user_info_of(url)
    config: dict[str, Any] = {
        "url": without_user(url),  # the HTTP library logs the URLs it is given
        "timeout": settings.timeout_s,  # its default is to wait for ever
        "max.retries": 0,  # whoever asks waits as it must, and a hanging registry costs one timeout
    }
    if settings.username is not None and settings.password is not None:
        user_info = f"{settings.username}:{settings.password.get_secret_value()}"
    if user_info is not None:
        config["basic.auth.user.info"] = user_info
    if settings.bearer_token is not None:
        # Its STATIC_TOKEN wants the ids of a Confluent Cloud cluster; a function of one's own may leave them empty.
        token = settings.bearer_token.get_secret_value()
        config["bearer.auth.credentials.source"] = "CUSTOM"
        config["bearer.auth.custom.provider.config"] = {}
        config["bearer.auth.custom.provider.function"] = lambda _config: {
            "bearer.auth.token": token,
            "bearer.auth.logical.cluster": "",
        }
    for key, file in (
        ("ssl.ca.location", settings.ca_file),
        ("ssl.certificate.location", settings.cert_file),
        ("ssl.key.location", settings.key_file),
    ):
        if file is not None:
            config[key] = str(file)
    return config


def _sorted_out(error: Exception, shown_url: str) -> Exception:
    status = getattr(error, "http_status_code", None)
    # An error's text may hold the whole answer of whatever stands at that address.
    words = without_credentials(str(error))[:300] or type(error).__name__
    code = getattr(error, "error_code", None)
    # A registry's own begin with 404 and have five digits; a path that is no registry's has none (-1), or 404 itself.
    if status == 404 and isinstance(code, int) and code // 100 == 404:
        return NotInRegistry(words)
    if isinstance(status, int) and 400 <= status < 500 and status not in (401, 403, 404, 408, 429):
        return RegistryRefused(words)
    return RegistryAway(f"the registry at {shown_url} gives no usable answer: {words}")
