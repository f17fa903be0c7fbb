"""Settings of the consumers room; `cli/settings.py` puts them together with those of the other rooms."""

from pydantic import BaseModel, ConfigDict, Field


class StateSettings(BaseModel):
    """Where the state of all projections is kept, with the offsets that it stands for."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    url: str = Field(
        default="sqlite:///.data/state.db",
        repr=False,
        description="database of states and offsets: sqlite:///PATH, the path relative to the working folder, or "
        "postgresql+psycopg://USER:PASSWORD@HOST:PORT/DATABASE for several processes of one consumer",
    )
    busy_timeout_s: float = Field(
        default=30.0, gt=0, le=600, description="how long a writer waits for another process that is writing"
    )


class ConsumerSettings(BaseModel):
    """How consumers read, and how they wait for what they cannot read yet."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    group_prefix: str = Field(
        default="kinguin-streams",
        pattern=r"^[a-zA-Z0-9._-]{1,100}$",
        description="first part of the consumer groups' names; two databases on one cluster need two",
    )
    instance_id: str | None = Field(
        default=None,
        pattern=r"^[a-zA-Z0-9._-]{1,200}$",
        description="this process's own name in its group (static membership): a restart within the session moves no "
        "partition; two processes of one consumer need two",
    )
    admin_port: int = Field(
        default=0,
        ge=0,
        le=65535,
        description="/livez, /readyz, /metrics; 0: none, so that two consumers on one machine do not clash. The image's "
        "deployments set 8082, next to the ingress's 8081",
    )
    admin_host: str = Field(default="127.0.0.1", description="address of the admin port")
    stuck_after_s: float | None = Field(
        default=None,
        gt=0,
        description="/livez fails once the loop has not turned for so long; longer than a handler's call and a transaction "
        "may take. By default a minute more than max.poll.interval.ms: by then the group has given the partitions away",
    )
    stop_linger_s: float = Field(
        default=30.0,
        ge=0,
        le=600,
        description="with an admin port: how long a consumer that cannot go on waits before it exits, so that the reason is "
        "scraped. It has left its group by then",
    )
    batch_records: int = Field(default=50_000, ge=1, le=100_000, description="most records in one database transaction")
    batch_wait_s: float = Field(
        default=0.2, gt=0, le=10, description="longest wait for a batch to fill up; the delay of a quiet topic"
    )
    derived: bool = Field(
        default=True,
        description="whether `consume` tells the newest states in the topics order.state and product.state; if not, what "
        "is to be told waits in the database",
    )
    kafka_wait_s: float = Field(
        default=15.0,
        gt=0,
        description="how long to wait for the cluster to say who it is, or what a group has committed. At the start it "
        "ends then; later, when partitions come, it waits as for a database that is away",
    )
    schema_retry_s: float = Field(
        default=1.0, gt=0, description="first wait before a record of an unknown schema is tried again; doubles"
    )
    schema_retry_max_s: float = Field(default=60.0, gt=0, description="longest such wait")
    state_retry_s: float = Field(
        default=0.5, gt=0, description="first wait before a database, or a Kafka, that is away is asked again; doubles"
    )
    state_retry_max_s: float = Field(default=10.0, gt=0, description="longest such wait")
    handler_attempts: int = Field(
        default=5, ge=1, le=100, description="how often a handler is given a record before it is dead-lettered"
    )
    handler_retry_s: float = Field(
        default=1.0, gt=0, description="first wait before a handler is given a record again; doubles"
    )
    handler_retry_max_s: float = Field(default=60.0, gt=0, description="longest such wait")
    handler_breaker_letters: int = Field(
        default=5,
        ge=0,
        description="once a handler has given up this many of its last 100 records, and no fewer than it has done, the "
        "consumer stops instead of dead-lettering more",
    )

    def group_id(self, consumer: str) -> str:
        """Return the consumer group of `consume NAME`."""
        return f"{self.group_prefix}.{consumer}"
