"""A user's consumer by its place: FILE.py:NAME or package.module:NAME. Every mistake is a sentence with the user's own line."""

import importlib
import importlib.util
import linecache
import sys
import sysconfig
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from types import ModuleType

from kinguin_streams.consumers.app import App, check_is_no_sample
from kinguin_streams.consumers.projection import FoldProjection, Projection, RowsProjection
from kinguin_streams.consumers.samples import SAMPLES
from kinguin_streams.telemetry.operator_error import OperatorError

Loadable = App | Projection
_KINDS = (App, FoldProjection, RowsProjection)
_EXAMPLE = "Name it as in `kinguin-streams consume my_consumer.py:app` or `my_package.my_module:app`."
_being_imported: ContextVar[str | None] = ContextVar("being_imported", default=None)


def load(target: str) -> Loadable:
    """Import what the target names, and return the App or the projection. Runs the user's module.

    Raises OperatorError: "consumer_target" (not of this form), "consumer_file_missing", "consumer_module_missing",
    "consumer_not_importable", "run_while_imported", "consumer_name_missing", as `checked` does, and what App itself refuses.
    """
    place, _, name = target.rpartition(":")
    if not place and name.endswith(".py"):  # the name was left out
        place, name = name, ""
    if not place:
        raise OperatorError("consumer_target", f"{target!r} names no consumer.", _EXAMPLE)
    with _importing(place):
        module = _module_of_file(place) if place.endswith(".py") else _module_by_name(place)
    found = _consumers_in(module)
    which = f"In {place} there is: {', '.join(found)}." if found else f"In {place} there is no App and no projection."
    if not name:
        raise OperatorError(
            "consumer_target", f"{target!r} does not say which name in the file.", f"{which} {_EXAMPLE}"
        )
    if not hasattr(module, name):
        raise OperatorError("consumer_name_missing", f"{place} has no {name}.", which)
    return checked(getattr(module, name), target, which, called=name)


def checked(consumer: object, named: str, hint: str, *, called: str = "app") -> Loadable:
    """Return what was given if it can be run. named, hint: for the sentence; called: an App's name in the user's file.

    Raises OperatorError: "consumer_wrong_kind", "no_handlers", "consumer_name" (a sample's).
    """
    if not isinstance(consumer, _KINDS):
        kind = type(consumer).__name__
        raise OperatorError("consumer_wrong_kind", f"{named} is a {kind}, and no App or projection.", hint)
    if isinstance(consumer, App):
        consumer.handlers_or_refusal(called)
    elif not any(consumer is sample for sample in SAMPLES):
        check_is_no_sample(consumer.name, named)
    return consumer


def refuse_while_imported() -> None:
    """Raise OperatorError("run_while_imported") if a module that `load` imports calls this: its consumer would run unasked.

    Inside `consume` without the command line's options, and inside `replay consumer` on live records, under its own group.
    """
    place = _being_imported.get()
    if place is not None:
        raise OperatorError(
            "run_while_imported",
            f"{place} runs its consumer as soon as it is imported.",
            'Put run(...) below `if __name__ == "__main__":`, which is only so when the file is started by itself.',
        )


@contextmanager
def _importing(place: str) -> Iterator[None]:
    before = _being_imported.set(place)
    try:
        yield
    finally:
        _being_imported.reset(before)


def _module_of_file(place: str) -> ModuleType:
    path = Path(place).absolute()
    if not path.is_file():
        raise OperatorError("consumer_file_missing", f"There is no file {place}.", f"Looked for {path}. {_EXAMPLE}")
    # As if Python had been started with it: what lies beside it can be imported.
    _search_first(path.parent)
    # Under its own name, so that type hints can be resolved there; a module that is called alike stays what it is.
    name = path.stem if path.stem not in sys.modules else f"_consumer_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise OperatorError("consumer_file_missing", f"{place} cannot be imported as Python.", _EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except OperatorError:
        raise
    except Exception as error:
        raise _not_importable(place, error) from error
    return module


def _module_by_name(place: str) -> ModuleType:
    _search_first(Path.cwd())
    try:
        return importlib.import_module(place)
    except OperatorError:
        raise
    except ModuleNotFoundError as error:
        if error.name is not None and (place == error.name or place.startswith(f"{error.name}.")):
            raise OperatorError(
                "consumer_module_missing",
                f"There is no module {error.name}.",
                f"Looked in {Path.cwd()} and in what is installed. {_EXAMPLE}",
            ) from error
        raise _not_importable(place, error) from error
    except Exception as error:
        raise _not_importable(place, error) from error


def _search_first(folder: Path) -> None:
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))


def _not_importable(place: str, error: Exception) -> OperatorError:
    """Return the error with the last line of the user's own code that led to it."""
    message = f"{type(error).__name__}: {error}"
    if isinstance(error, SyntaxError):
        where = f"{error.filename}, line {error.lineno}: {(error.text or '').strip()}"
        message = f"{type(error).__name__}: {error.msg}"
    else:
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not _is_foreign(frame.filename)]
        where = place
        if frames:
            line = linecache.getline(frames[-1].filename, frames[-1].lineno or 0).strip()
            where = f"{frames[-1].filename}, line {frames[-1].lineno}: {line}"
    return OperatorError("consumer_not_importable", f"{place} cannot be imported: {message}.", f"At {where}")


def _is_foreign(file: str) -> bool:
    """Return whether a file is neither the user's nor of any use to them: ours, Python's, an installed package's."""
    ours = str(Path(__file__).resolve().parent.parent)
    python = sysconfig.get_paths()["stdlib"]
    return file.startswith((ours, python, "<frozen")) or "site-packages" in file


def _consumers_in(module: ModuleType) -> list[str]:
    return [name for name, value in vars(module).items() if isinstance(value, _KINDS)]
