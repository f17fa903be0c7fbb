"""A user's mistakes as sentences on stderr and an exit code: for the command line, and for a program that calls `run`."""

from collections.abc import Iterator
from contextlib import contextmanager

from kinguin_streams.cli.output import talk
from kinguin_streams.telemetry.operator_error import OperatorError

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130


@contextmanager
def told() -> Iterator[None]:
    """Meanwhile an OperatorError, a ConfigurationError and a Ctrl-C end in a few lines or none and SystemExit, in no traceback."""
    try:
        yield
    except OperatorError as error:
        talk(f"error: {error.what}\n  {error.hint}")
        raise SystemExit(EXIT_FAILED) from error
    except KeyboardInterrupt:
        raise SystemExit(EXIT_INTERRUPTED) from None
    except Exception as error:
        faults = getattr(error, "faults", None)  # ConfigurationError, whose module is slow to import
        if faults is None:
            raise
        for fault in faults:
            talk(f"configuration: {fault}")
        raise SystemExit(EXIT_USAGE) from error
