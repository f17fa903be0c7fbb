"""Settings of the ingress."""

import re
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator

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
    on_invalid: Literal["accept", "reject"] = Field(
        default="accept",
        description="an authenticated but invalid payload: accept (202) or reject (422); kept either way",
    )
    threads: int = Field(default=32, ge=1, le=1024, description="requests that may wait for Kafka at once")
    connection_limit: int = Field(default=1000, ge=1, description="open connections")
    ack_wait_s: float = Field(
        default=3.0, gt=0, le=60, description="how long a request waits for Kafka's delivery report"
    )
    delivery_timeout_s: float = Field(default=30.0, gt=0, description="when the producer gives a record up")
    queue_records: int = Field(default=10_000, ge=1, description="records that may wait in the producer's memory")
    pre_stop_s: float = Field(default=0.0, ge=0, description="after SIGTERM: unready, but serving, for so long")
    stop_timeout_s: float = Field(
        default=10.0, gt=0, description="then: time for the requests in flight and the last reports"
    )

    @field_validator("secrets")
    @classmethod
    def _secrets_can_be_sent(cls, secrets: dict[str, tuple[SecretStr, ...]]) -> dict[str, tuple[SecretStr, ...]]:
        for store, values in secrets.items():
            if not STORE_NAME.fullmatch(store):
                raise ValueError(f"store {store!r} does not match {STORE_NAME.pattern}")
            if not values:
                raise ValueError(f"store {store!r} has no secret")
            for value in values:
                text = value.get_secret_value()
                if not _VISIBLE_ASCII.fullmatch(text):
                    raise ValueError(f"store {store!r} has a secret that is empty, or that an HTTP header cannot carry")
                if text.lower() in PLACEHOLDERS:
                    raise ValueError(f"store {store!r} has a secret from an example: choose one of your own")
        return secrets
