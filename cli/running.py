"""A consumer in this process until a signal ends it: what `kinguin-streams consume` and `kinguin_streams.run` share."""

import signal
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING

from kinguin_streams.cli.mistakes import EXIT_INTERRUPTED

if TYPE_CHECKING:
    from types import FrameType

    from kinguin_streams.cli.settings import Settings
    from kinguin_streams.cluster.publisher import KafkaPublisher, Publisher
    from kinguin_streams.consumers.effect import Effect
    from kinguin_streams.consumers.loading import Loadable
    from kinguin_streams.consumers.loop import ConsumeLoop
    from kinguin_streams.consumers.relay import Relay
    from kinguin_streams.consumers.tally import Tally

STOPPING = (signal.SIGTERM, signal.SIGINT)
FLUSH_S = 3.0
"""For reports that nobody waits for: a dead letter has been confirmed by then, and a state that has not stays in the outbox.

Where Kafka says nothing, each step of a stop takes all of its time: leaving the group 10 s, the admin port 5 s, its look at
Kafka 5 s, the relay 5 s, and this. The sum stays below the 30 s that Kubernetes gives by default.
"""
STUCK_GRACE_S = 60.0
"""After the group has given the partitions away: until then a turn may still end well."""


def run(consumer: "Loadable", settings: "Settings") -> int:
    """Return the exit code once SIGTERM (0) or SIGINT (130) has ended it, after the batch or the handler in hand.

    A second one ends the process at once. For the main thread: the signals' handlers are ours from here on. Raises
    OperatorError for what the operator can mend, as ConsumeLoop.run and StateStore do.
    """
    from kinguin_streams.cli import second_signal, wiring
    from kinguin_streams.consumers.app import App
    from kinguin_streams.consumers.handler_effect import HandlerEffect
    from kinguin_streams.consumers.tally import Tally, count_stale

    tally = Tally()
    with second_signal.exits_at_once(), _publisher(settings, consumer.name) as publisher:
        if isinstance(consumer, App):
            max_poll_interval_s = _max_poll_interval_s(settings)
            effect = HandlerEffect(consumer, settings.consumer, max_poll_interval_s=max_poll_interval_s)
            return _run(_loop(effect, settings, publisher, tally), effect, settings, None)
        from kinguin_streams.consumers import relay
        from kinguin_streams.consumers.effect import AHEAD_FROM_RECORDS, StateEffect
        from kinguin_streams.consumers.store import StateStore

        # After the publisher: where nobody has said where Kafka is, no database is left behind.
        projection = count_stale(consumer, tally) if settings.consumer.admin_port else consumer
        store = StateStore(settings.state, projection)
        try:
            teller = wiring.relay(settings, consumer, publisher)
            ahead_from = min(AHEAD_FROM_RECORDS, settings.consumer.batch_records)
            states = StateEffect(projection, store, ahead_from=ahead_from)
            with relay.running(teller):
                return _run(_loop(states, settings, publisher, tally), states, settings, teller)
        finally:
            store.close()


@contextmanager
def handlers_put_back() -> Iterator[None]:
    """Put the caller's own signal handlers back at the end, for what it still has to do then."""
    before = [(number, signal.getsignal(number)) for number in STOPPING]
    try:
        yield
    finally:
        for number, handler in before:
            if handler is not None:  # of a program in C around this Python: only it can put that back
                signal.signal(number, handler)


@contextmanager
def _publisher(settings: "Settings", name: str) -> "Iterator[KafkaPublisher]":
    from kinguin_streams.cli import wiring

    publisher = wiring.publisher(settings, client_id=f"kinguin-streams-{name}")
    try:
        yield publisher
    finally:
        publisher.close(FLUSH_S)


def _max_poll_interval_s(settings: "Settings") -> float:
    from kinguin_streams.consumers.handler_effect import MAX_POLL_INTERVAL_S

    return float(settings.kafka.config.get("max.poll.interval.ms", MAX_POLL_INTERVAL_S * 1000)) / 1000


def _loop(effect: "Effect", settings: "Settings", publisher: "Publisher", tally: "Tally") -> "ConsumeLoop":
    from kinguin_streams.cli import wiring
    from kinguin_streams.consumers.loop import ConsumeLoop
    from kinguin_streams.telemetry.traces import traces

    return ConsumeLoop(
        effect,
        kafka=wiring.kafka(settings),
        topics=wiring.topics(settings),
        settings=settings.consumer,
        decoder=wiring.decoder(settings),
        encoder=wiring.dead_letter_encoder(settings),
        publisher=publisher,
        traces=traces(f"kinguin-streams-{effect.name}"),
        tally=tally,
    )


def _admin(
    loop: "ConsumeLoop", effect: "Effect", settings: "Settings", relay: "Relay | None"
) -> AbstractContextManager[None]:
    """Return what serves the admin port meanwhile, if there is to be one."""
    if not settings.consumer.admin_port:
        return nullcontext()
    from kinguin_streams.cli import wiring
    from kinguin_streams.cluster.connection import consumer_config
    from kinguin_streams.cluster.topic_reader import TopicReader
    from kinguin_streams.consumers.admin import ConsumerAdmin
    from kinguin_streams.consumers.watch import StateLook

    stuck_after_s = settings.consumer.stuck_after_s or _max_poll_interval_s(settings) + STUCK_GRACE_S
    name = f"{loop.group_id}-admin"  # a member of no group
    return ConsumerAdmin(
        loop,
        effect,
        settings=settings.consumer,
        stuck_after_s=stuck_after_s,
        reader=TopicReader(consumer_config(wiring.kafka(settings), group_id=name, client_id=name)),
        state=None if effect.offsets_are_kafkas else StateLook(settings.state, effect.name),
        relay=relay,
    ).serving()


def _run(loop: "ConsumeLoop", effect: "Effect", settings: "Settings", relay: "Relay | None") -> int:
    interrupted = False

    def stop(signal_number: int, _frame: "FrameType | None") -> None:
        nonlocal interrupted
        interrupted = interrupted or signal_number == signal.SIGINT
        loop.stop()

    for number in STOPPING:
        signal.signal(number, stop)
    with _admin(loop, effect, settings, relay):
        loop.run()
    return EXIT_INTERRUPTED if interrupted else 0
