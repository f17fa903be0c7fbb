"""A user's mistakes as sentences on stderr and an exit code."""

from collections.abc import Iterator
from contextlib import contextmanager

from kinguin_streams.cli.output import talk
from kinguin_streams.telemetry.operator_error import OperatorError

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130


@contextmanager
def told() -> Iterator[None]:
    """Meanwhile an OperatorError or a ConfigurationError ends in one or two lines and SystemExit, never in a traceback."""
    try:
        yield
    except OperatorError as error:
        talk(f"error: {error.what}\n  {error.hint}")
        raise SystemExit(EXIT_FAILED) from error
    except Exception as error:
        faults = getattr(error, "faults", None)  # ConfigurationError, whose module is slow to import
        if faults is None:
            raise
        for fault in faults:
            talk(f"configuration: {fault}")
        raise SystemExit(EXIT_USAGE) from error
