"""Settings of the replay room; `cli/settings.py` puts them together with those of the other rooms."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field


class ReplaySettings(BaseModel):
    """How replays run."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    receipts: Path = Field(
        default=Path(".data/replays"),
        description="folder of the receipts, from which a replay is resumed and its proof is shown",
    )
    batch_records: int = Field(
        default=500,
        ge=1,
        le=100_000,
        description="most records that are moved at once; they stay in the processor's cache",
    )
    checkpoint_s: float = Field(
        default=5.0,
        gt=0,
        le=600,
        description="how often progress is made durable; what a resumed replay looks at again",
    )
    checkpoint_records: int = Field(
        default=250_000, ge=1, le=10_000_000, description="the same in records: bounds the memory of a resumed replay"
    )
    distinct_records: int = Field(
        default=1_000_000,
        ge=1,
        description="how many event ids --distinct remembers, about 130 bytes each; duplicates further apart both pass",
    )
    delivery_timeout_s: float = Field(
        default=120.0, gt=0, description="how long a record may wait for Kafka before the replay stops, to be resumed"
    )
    redrive_attempts: int = Field(
        default=3,
        ge=1,
        le=100,
        description="a dead letter that was redriven in vain so often is parked, until one asks for it",
    )
