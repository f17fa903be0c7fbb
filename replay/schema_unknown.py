"""What a replay says of a value that can be read elsewhere, or later, and not here: it stops, since no record may be skipped."""

from kinguin_streams.schemas.codec import RegistryNeeded, UnknownSchema
from kinguin_streams.telemetry.operator_error import OperatorError


def schema_unknown(topic: str, partition: int, offset: int, error: RegistryNeeded | UnknownSchema) -> OperatorError:
    """Return the error for a record that has to be looked into."""
    return OperatorError(
        "schema_unknown",
        f"{topic}/{partition}/{offset} has to be looked into, and cannot be read here: {error}.",
        "Set KINGUIN_REGISTRY__URL, or upgrade to a version that ships the schema, and go on.",
    )
