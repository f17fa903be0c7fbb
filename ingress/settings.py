"""Settings of the ingress."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator, model_validator

from kinguin_streams.schemas.events import STORE_NAME

PLACEHOLDERS = frozenset({"changeme", "change-me", "change_me", "default", "password", "secret", "your-secret", "xxx"})
"""Secrets that stand in examples. Whoever deploys one has no secret."""
_VISIBLE_ASCII = re.compile(r"[!-~]+")


class IngressSettings(BaseModel):
    """Where the ingress listens, whom it believes, and how long it waits."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    host: str = Field(default="127.0.0.1", description="address of webhooks and of the admin port")
    port: int = Field(default=8080, ge=1, le=65535, description="webhooks")
    admin_port: int = Field(default=8081, ge=1, le=65535, description="/livez, /readyz, /metrics")
    secrets: dict[str, tuple[SecretStr, ...]] = Field(
        default_factory=dict,
        repr=False,
        description='JSON, store to its live secrets: {"default": ["current", "next"], "shop-2": ["…"]}',
    )
    secrets_dir: Path | None = Field(
        default=None, description="folder with a file or folder for each store: one secret a line; reread on change"
    )
    silence_s: float = Field(
        default=21_600.0,
        gt=0,
        description="a store without any event for so long is warned of; readiness does not change",
    )
    failure_budget: float = Field(
        default=0.01,
        ge=0,
        le=1,
        description="share of the last five minutes' requests that may fail before it is warned of",
    )
    on_invalid: Literal["accept", "reject"] = Field(
        default="accept",
        description="an authenticated but invalid payload: accept (202) or reject (422); kept either way",
    )
    server: Literal["waitress", "granian"] = Field(
        default="waitress", description="what speaks HTTP; granian (extra `granian`) answers the same, and more at once"
    )
    connection_limit: int = Field(default=1000, ge=1, description="open connections, each with one request at a time")
    max_in_flight: int = Field(
        default=512, ge=1, description="authenticated requests that may wait for Kafka or the disk; beyond: 503 at once"
    )
    reuse_port: bool = Field(
        default=False, description="share the port with other processes, each with an admin port of its own"
    )
    ack_wait_s: float = Field(
        default=3.0, gt=0, le=60, description="how long a request waits for Kafka's delivery report"
    )
    deadline_s: float = Field(
        default=5.0, gt=0, le=60, description="every request is answered within this time of its last byte"
    )
    request_timeout_s: float = Field(
        default=10.0,
        gt=0,
        description="a request that takes longer to come in is cut off: its client is slow or hostile",
    )
    delivery_timeout_s: float = Field(default=30.0, gt=0, description="when the producer gives a record up")
    queue_records: int = Field(default=10_000, ge=1, description="records that may wait in the producer's memory")
    pre_stop_s: float = Field(default=0.0, ge=0, description="after SIGTERM: unready, but serving, for so long")
    stop_timeout_s: float = Field(
        default=10.0, gt=0, description="then: time for the requests in flight and the last reports"
    )

    @model_validator(mode="before")
    @classmethod
    def _with_folder(cls, given: Any) -> Any:
        if not isinstance(given, dict) or not given.get("secrets_dir"):
            return given
        secrets = given.get("secrets") or {}
        if not isinstance(secrets, dict) or not all(isinstance(values, list | tuple) for values in secrets.values()):
            return given  # the field's own checks say what is wrong with it
        merged = {store: list(values) for store, values in secrets.items()}
        for store, values in _secrets_in(Path(given["secrets_dir"])).items():
            merged.setdefault(store, []).extend(value for value in values if value not in merged.get(store, ()))
        return {**given, "secrets": merged}

    @model_validator(mode="after")
    def _two_ports(self) -> Self:
        if self.port == self.admin_port:
            raise ValueError(  # reported under the room's name, so the message names the keys
                f"PORT and ADMIN_PORT are both {self.port}; set one of them to another port"
            )
        return self

    @field_validator("secrets", mode="before")
    @classmethod
    def _secrets_are_lists(cls, secrets: Any) -> Any:
        # pydantic would name the place of what is wrong by the store's text.
        if isinstance(secrets, dict):
            for number, values in enumerate(secrets.values(), 1):
                if not isinstance(values, list | tuple) or not all(
                    isinstance(each, str | SecretStr) for each in values
                ):
                    raise ValueError(f'{_nth(number, secrets)} has no list of secrets, as in {{"default": ["…"]}}')
        return secrets

    @field_validator("secrets")
    @classmethod
    def _secrets_can_be_sent(cls, secrets: dict[str, tuple[SecretStr, ...]]) -> dict[str, tuple[SecretStr, ...]]:
        for number, (store, values) in enumerate(secrets.items(), 1):
            named = _nth(number, secrets)
            if not STORE_NAME.fullmatch(store):
                raise ValueError(
                    f"the name of {named} does not match {STORE_NAME.pattern}; is the secret in the store's place?"
                )
            if not values:
                raise ValueError(f"{named} has no secret")
            for value in values:
                text = value.get_secret_value()
                if not _VISIBLE_ASCII.fullmatch(text):
                    raise ValueError(f"{named} has a secret that is empty, or that an HTTP header cannot carry")
                if text.lower() in PLACEHOLDERS:
                    raise ValueError(f"{named} has a secret from an example: choose one of your own")
        return secrets


def _nth(number: int, secrets: Mapping[str, object]) -> str:
    """Return what stands for a store in an error: its place, those of the folder last and by name.

    Not its text: where store and secret are swapped, that is the secret. `{"3fa9…": ["default"]}` is such a case whose
    store may be one by its form, so even a name that matches is not shown.
    """
    return f"store {number} of {len(secrets)}"


def _secrets_in(folder: Path) -> dict[str, list[str]]:
    """Return the secrets of a folder: <store>, a file with one a line, or <store>/<any name>, as orchestrators mount them.

    Raises ValueError, which pydantic reports with the setting's name.
    """
    try:
        found = {}
        for entry in sorted(folder.iterdir()):
            if not entry.name.startswith("."):  # an orchestrator swaps links with such names
                files = sorted(entry.iterdir()) if entry.is_dir() else [entry]
                lines = [line for file in files if not file.name.startswith(".") for line in _lines(file)]
                found[entry.name] = lines
        return found
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"secrets_dir {folder} cannot be read: {error}") from error


def _lines(file: Path) -> list[str]:
    return [line.strip() for line in file.read_text("utf-8").splitlines() if line.strip()]


class SpoolSettings(BaseModel):
    """Where events wait on disk while Kafka is away."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    enabled: bool = Field(default=True, description="false: 503 at once while Kafka is away")
    path: Path = Field(
        default=Path(".data/spool"), description="folder on a local, durable disk; processes may share it"
    )
    max_bytes: int = Field(
        default=1_073_741_824, ge=1_048_576, description="each process takes no more events into its file than this"
    )
    max_age_s: float = Field(
        default=604_800.0, gt=0, description="nor any while the oldest has waited longer: nobody drains it"
    )
    timeout_s: float = Field(default=1.0, gt=0, le=60, description="how long a request waits for the disk")
    require_durable: bool = Field(
        default=False, description="refuse a folder on tmpfs or an overlay filesystem, which a restart empties"
    )
