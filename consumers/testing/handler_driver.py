"""An App under test: the real loop, codec, retries and breaker, over a Kafka in memory, turned step by step.

The handlers are called for real: what they call must be the test's own. Progress is what the group has committed.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

from kinguin_streams.consumers.app import App
from kinguin_streams.consumers.batch import TopicPart
from kinguin_streams.consumers.handler_effect import HandlerEffect
from kinguin_streams.consumers.store import StateStore
from kinguin_streams.consumers.testing.processes import Died, Driver, Process
from kinguin_streams.schemas.codec import Decoder, RecordEncoder


class HandlerDriver(Driver):
    """Runs one App. A context manager."""

    def __init__(
        self,
        app: App,
        *,
        partitions: int = 3,
        decoder: Decoder | None = None,
        encoder: RecordEncoder | None = None,
        **settings: Any,
    ) -> None:
        """partitions: of each topic. decoder, encoder: of another schema version, or with a registry.

        settings: those of ConsumerSettings, as handler_attempts. Raises OperatorError("no_handlers").
        """
        super().__init__(
            tuple(app.handlers_or_refusal()),
            partitions=partitions,
            decoder=decoder,
            encoder=encoder,
            settings=settings,
        )
        self.app = app
        self._start()

    def offsets(self) -> dict[TopicPart, int]:
        """Return what the group has committed, of each partition of which it has committed anything."""
        return dict(self.kafka.group(self._settings.group_id(self.app.name)).committed)

    @contextmanager
    def commits_fail(self) -> Iterator[None]:
        """Let Kafka take no commit of the processes that there are, as while the group's coordinator is away."""
        with self._of_each_client("commits_fail"):
            yield

    @contextmanager
    def commits_wait(self) -> Iterator[None]:
        """Let the commits of the processes that there are wait; the next `run` has them taken, the last one first.

        So the client may do when the group's coordinator comes back: the group then has the older offset.
        """
        with self._of_each_client("commits_wait"):
            yield

    @contextmanager
    def _of_each_client(self, fault: Literal["commits_fail", "commits_wait"]) -> Iterator[None]:
        clients = [process.client for process in self._processes]
        for client in clients:
            setattr(client, fault, True)
        try:
            yield
        finally:
            for client in clients:
                setattr(client, fault, False)

    def _new_effect(self) -> tuple[HandlerEffect, StateStore | None]:
        return HandlerEffect(self.app, self._settings, clock=self.clock), None

    @contextmanager
    def _dying_at_commit(self, process: Process, *, commit: bool) -> Iterator[None]:
        def die() -> None:
            raise Died

        client = process.client
        client.before_commit, client.after_commit = (None, die) if commit else (die, None)
        try:
            yield
        finally:
            client.before_commit = client.after_commit = None
