"""`kinguin-streams consume WHAT`: run a sample, or a consumer of the user's own."""

import signal
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from types import FrameType

    from kinguin_streams.cli.settings import Settings
    from kinguin_streams.cluster.publisher import Publisher
    from kinguin_streams.consumers.effect import Effect
    from kinguin_streams.consumers.loading import Loadable
    from kinguin_streams.consumers.loop import ConsumeLoop


def consume(
    what: Annotated[
        str,
        typer.Argument(
            metavar="order-state|product-changes|FILE.py:NAME|MODULE:NAME",
            help="a sample, or an App or a projection of your own",
            show_default=False,
        ),
    ],
    state_url: Annotated[
        str | None,
        typer.Option(
            "--state-url",
            help="database of a projection's state and offsets",
            show_default="sqlite:///.data/state.db",
        ),
    ] = None,
) -> None:
    """Run a consumer: a projection, which keeps a state up to date, or an App, whose handlers are called.

    order-state keeps the status of every order with the evidence for it, product-changes every distinct change of every
    product; read both with `kinguin-streams state`. State and offsets are stored together (KINGUIN_STATE__URL), so
    killing a projection loses nothing and counts nothing twice.

    An App's handlers are called at least once for each record, in the order of each partition; one that fails is tried
    again (KINGUIN_CONSUMER__HANDLER_ATTEMPTS), then its record is dead-lettered.

    A record that nobody can read goes to the dead-letter topic; a record of a schema that is not known here yet makes
    its partition wait. Stops on SIGTERM (exit 0) or Ctrl-C (130) after the batch or the handler in hand.
    """
    from kinguin_streams.cli import wiring
    from kinguin_streams.cli.settings import load
    from kinguin_streams.consumers.app import App
    from kinguin_streams.consumers.handler_effect import MAX_POLL_INTERVAL_S, HandlerEffect
    from kinguin_streams.telemetry.logs import configure

    settings = load(state={"url": state_url})
    configure(settings.log.level, settings.log.format, in_background=True)
    consumer = _consumer(what)
    with wiring.publisher(settings, client_id=f"kinguin-streams-{consumer.name}") as publisher:
        if isinstance(consumer, App):
            limit_ms = settings.kafka.config.get("max.poll.interval.ms", MAX_POLL_INTERVAL_S * 1000)
            effect = HandlerEffect(consumer, settings.consumer, max_poll_interval_s=float(limit_ms) / 1000)
            _run(_loop(effect, settings, publisher))
            return
        from kinguin_streams.consumers import relay
        from kinguin_streams.consumers.effect import StateEffect
        from kinguin_streams.consumers.store import StateStore

        # After the publisher: where nobody has said where Kafka is, no database is left behind.
        store = StateStore(settings.state, consumer)
        try:
            with relay.running(wiring.relay(settings, consumer, publisher)):
                _run(_loop(StateEffect(consumer, store), settings, publisher))
        finally:
            store.close()


def _consumer(what: str) -> "Loadable":
    from kinguin_streams.consumers import loading
    from kinguin_streams.consumers.samples import SAMPLES
    from kinguin_streams.telemetry.operator_error import OperatorError

    samples = {sample.name: sample for sample in SAMPLES}
    if what in samples:
        return samples[what]
    if ":" not in what and not what.endswith(".py"):
        raise OperatorError(
            "consumer_target",
            f"There is no consumer {what!r}.",
            f"Name {' or '.join(samples)}, or one of your own as in `kinguin-streams consume my_consumer.py:app`.",
        )
    return loading.load(what)


def _loop(effect: "Effect", settings: "Settings", publisher: "Publisher") -> "ConsumeLoop":
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
    )


def _run(loop: "ConsumeLoop") -> None:
    interrupted = False

    def stop(signal_number: int, _frame: "FrameType | None") -> None:
        nonlocal interrupted
        interrupted = interrupted or signal_number == signal.SIGINT
        loop.stop()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    loop.run()
    if interrupted:
        raise typer.Exit(130)
