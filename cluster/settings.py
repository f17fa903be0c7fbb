"""Settings of the cluster room; `cli/settings.py` puts them together with those of the other rooms."""

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, SecretStr


class KafkaSettings(BaseModel):
    """Where Kafka is, and any key of librdkafka's own configuration."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    bootstrap_servers: str | None = Field(
        default=None,
        description="host:port,…; without it `up` starts a local broker, and other commands look for that one",
    )
    # Passwords and keys travel in here, so a dump of the settings must hide the values: see cli/settings.py.
    config: dict[str, Any] = Field(
        default_factory=dict,
        repr=False,
        description="JSON: any librdkafka key (security.protocol, sasl.username, ssl.ca.location, …)",
    )


class LocalSettings(BaseModel):
    """The one-node Kafka that `up` and `kafka start` run on this machine."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    data_dir: Path = Field(default=Path(".data"), description="the local broker's data and logs")
    cache_dir: Path | None = Field(
        default=None, description="where the Kafka jars are kept; default: the user's cache folder"
    )
    kafka_port: int = Field(default=9092, ge=1, le=65535, description="the local broker's port, on 127.0.0.1")
    controller_port: int = Field(
        default=9093, ge=1, le=65535, description="the local broker's controller port, on 127.0.0.1"
    )
    heap: str = Field(default="512m", pattern=r"^[0-9]+[mg]$", description="the local broker's Java heap")


class RegistrySettings(BaseModel):
    """A schema registry with Confluent's API. With a URL set, records go out in the Confluent wire format."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    url: str | None = Field(
        default=None,
        repr=False,  # it may hold a password
        description="Confluent-compatible API; without it: Avro single-object encoding",
    )
    username: str | None = None
    password: SecretStr | None = None
