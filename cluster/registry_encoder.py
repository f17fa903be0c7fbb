"""An encoder for those who seldom write: it wants the registry when there is something to write, not at start."""

from collections.abc import Callable

import structlog

from kinguin_streams.schemas.codec import RecordEncoder
from kinguin_streams.schemas.events import Record
from kinguin_streams.telemetry.operator_error import OperatorError

log = structlog.get_logger()

_COMES_WITH_TIME = ("registry_away", "schema_not_registered")


class EncoderOnDemand:
    """A consumer's encoder for dead letters; an implementation of schemas.codec.RecordEncoder.

    It asks for its ids at once, and if they are not to be had, again for each record: a consumer whose registry is away
    reads on and waits, and stops only before a record that it could neither read nor keep.
    """

    def __init__(self, make: Callable[[], RecordEncoder]) -> None:
        """make: raises OperatorError while there is no encoder to be had.

        Raises what it raises unless time may mend it: a registry that contradicts the ids that we know, for one, must not
        be read on with.
        """
        self._make = make
        self._made: RecordEncoder | None = None
        try:
            self._made = make()
        except OperatorError as error:
            if error.code not in _COMES_WITH_TIME:
                raise
            log.warning("dead_letters_cannot_be_written", reason=error.what, hint=error.hint)

    def encode(self, record: Record) -> bytes:
        """Return the record's value; raises OperatorError as `make` does."""
        if self._made is None:
            self._made = self._make()
        return self._made.encode(record)
