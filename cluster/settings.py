"""Settings of the cluster room; `cli/settings.py` puts them together with those of the other rooms."""

import re
import ssl
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator, model_validator

from kinguin_streams.cluster.registry_url import fault_of, user_info_of


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

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    url: str | None = Field(
        default=None,
        repr=False,  # it may hold a password
        description="Confluent-compatible API (Apicurio: …/apis/ccompat/v7); without it: Avro single-object encoding",
    )
    username: str | None = Field(default=None, description="basic authentication, with the password")
    password: SecretStr | None = Field(default=None, description="basic authentication, with the user name")
    bearer_token: SecretStr | None = Field(default=None, description="sent as Authorization: Bearer …")
    ca_file: Path | None = Field(
        default=None, description="PEM certificates to trust instead of the public authorities; a private registry's CA"
    )
    cert_file: Path | None = Field(default=None, description="PEM certificate to show to the registry (mTLS)")
    key_file: Path | None = Field(
        default=None, description="its private key, PEM and unencrypted; default: in the certificate's file"
    )
    timeout_s: float = Field(default=5.0, gt=0, le=60, description="longest wait for one answer of the registry")
    auto_register: bool = Field(
        default=False, description="register what is missing at start; else `schemas register` does, a deploy step"
    )
    cache_file: Path | None = Field(
        default=None,
        description="ids once seen, for when the registry is away; default: registry-ids.json in the data folder",
    )

    @field_validator("url")
    @classmethod
    def _can_be_used(cls, url: str | None) -> str | None:
        if url is not None and (fault := fault_of(url)) is not None:
            raise ValueError(fault)
        return url

    @field_validator("username")
    @classmethod
    def _may_be_a_user_id(cls, username: str | None) -> str | None:
        if username is not None and ":" in username:
            raise ValueError("a user name for basic authentication has no colon (RFC 7617)")
        return username

    @field_validator("bearer_token")
    @classmethod
    def _fits_a_header(cls, token: SecretStr | None) -> SecretStr | None:
        if token is not None and not re.fullmatch(r"[\x21-\x7e]+", token.get_secret_value()):
            raise ValueError("a token is printable ASCII without blanks, and not empty")
        return token

    @field_validator("ca_file", "cert_file")
    @classmethod
    def _holds_a_certificate(cls, file: Path | None) -> Path | None:
        if file is not None and b"-----BEGIN CERTIFICATE-----" not in _read(file):
            raise ValueError(f"no PEM certificate in {file}")
        return file

    @field_validator("key_file")
    @classmethod
    def _can_be_read(cls, file: Path | None) -> Path | None:
        if file is not None:
            _read(file)
        return file

    @model_validator(mode="after")
    def _agree(self) -> Self:
        """One way to say who we are, and each way whole.

        Reported under KINGUIN_REGISTRY, so every message names its key.
        """
        faults = []
        for name, other in (("username", "password"), ("password", "username")):
            if getattr(self, name) is not None and getattr(self, other) is None:
                faults.append(f"{_key(name)} is set and {_key(other)} is not")
        if self.bearer_token is not None and (self.username is not None or self.password is not None):
            faults.append(f"{_key('bearer_token')} and {_key('username')} are both set; set one of them")
        if (
            self.url is not None
            and user_info_of(self.url) is not None
            and (self.username is not None or self.bearer_token is not None)
        ):
            faults.append(f"{_key('url')} holds a user, and another key says who we are; take it out of the URL")
        if self.key_file is not None and self.cert_file is None:
            faults.append(f"{_key('key_file')} is set and {_key('cert_file')} is not")
        elif self.cert_file is not None and not _is_pair(self.cert_file, self.key_file):
            faults.append(
                f"{_key('cert_file')} and its private key ({_key('key_file')}, or in the same file) do not go together, "
                "or the key is encrypted"
            )
        if faults:
            raise ValueError("; ".join(faults))
        return self


def _key(name: str) -> str:
    return f"KINGUIN_REGISTRY__{name.upper()}"


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise ValueError(f"cannot read {file}: {error.strerror}") from error


def _is_pair(cert_file: Path, key_file: Path | None) -> bool:
    try:
        # An empty password instead of a prompt on the terminal, which is what OpenSSL does for an encrypted key.
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_cert_chain(cert_file, key_file, password="")
    except OSError:  # ssl.SSLError is one
        return False
    return True
