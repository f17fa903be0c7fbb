"""Kinguin webhooks as Kafka streams. The rooms are the packages below this one; `docs/architecture.md` is the map.

`run` is here and in no room: it puts rooms together, as the command does, and is what a user's own program starts with.
"""

from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from kinguin_streams.consumers.app import App
    from kinguin_streams.consumers.projection import Projection


def run(consumer: "App | Projection") -> NoReturn:
    """Run an App or a projection in this process until a signal ends it, as `kinguin-streams consume` does.

        if __name__ == "__main__":
            run(app)

    Settings are KINGUIN_* variables and ./kinguin-streams.toml; logs go to stderr, and the logging of this process is set
    up for that. For the main thread, where signals arrive: after the batch or the handler in hand, SIGTERM ends in
    SystemExit(0), Ctrl-C in SystemExit(130); a second one ends the process at once. What is to be done after that belongs
    into `finally`. A mistake in settings is told on stderr and ends in SystemExit(2), another one that the operator can mend
    in SystemExit(1); neither in a traceback.

    Raises OperatorError("run_while_imported") when a command imports the file that calls it: without the `if` above.
    """
    import threading

    from kinguin_streams.cli import mistakes, running
    from kinguin_streams.cli.settings import load
    from kinguin_streams.consumers import loading
    from kinguin_streams.telemetry.logs import configure
    from kinguin_streams.telemetry.operator_error import OperatorError

    loading.refuse_while_imported()  # to whoever imports, who tells of it
    with mistakes.told():
        checked = loading.checked(consumer, "What run() was given", "Give it the consumer itself, as in run(app).")
        if threading.current_thread() is not threading.main_thread():
            raise OperatorError(
                "run_in_a_thread",
                f"run() was called in the thread {threading.current_thread().name}.",
                "Call it in the main thread, where signals arrive, and do the rest in threads.",
            )
        settings = load()
        configure(settings.log.level, settings.log.format, in_background=True)
        with running.handlers_put_back():
            exit_code = running.run(checked, settings)
    raise SystemExit(exit_code)
