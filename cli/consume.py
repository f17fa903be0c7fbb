"""`kinguin-streams consume NAME`: keep a state up to date."""

import signal
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from types import FrameType

    from kinguin_streams.consumers.projection import Projection

app = typer.Typer(
    no_args_is_help=True,
    help=(
        "Keep a state up to date: read the topics, fold every record into the state, each in effect exactly once.\n\n"
        "State and offsets are stored together (KINGUIN_STATE__URL), so killing a consumer loses nothing and counts "
        "nothing twice: start it again. A record that nobody can read goes to the dead-letter topic; a record of a "
        "schema that is not known here yet makes its partition wait. Read the state with `kinguin-streams state`."
    ),
)

StateUrl = Annotated[
    str | None,
    typer.Option("--state-url", help="database of state and offsets", show_default="sqlite:///.data/state.db"),
]


@app.command("order-state")
def order_state(state_url: StateUrl = None) -> None:
    """Keep the status of every order, with the evidence for it, from the topics order.status and order.complete.

    The result is the same in whatever order the events arrive and however often: of an order's facts the one with the
    greatest updatedAt counts. Stops on SIGTERM (exit 0) or Ctrl-C (130) after the batch in hand.
    """
    from kinguin_streams.consumers.order_state import ORDER_STATE

    _consume(ORDER_STATE, state_url)


@app.command("product-changes")
def product_changes(state_url: StateUrl = None) -> None:
    """Keep every distinct change of every product, from the topic product.update.

    Counts, differences and latest known values are worked out when read; a byte-equal retry of a webhook is no change.
    Stops on SIGTERM (exit 0) or Ctrl-C (130) after the batch in hand.
    """
    from kinguin_streams.consumers.product_changes import PRODUCT_CHANGES

    _consume(PRODUCT_CHANGES, state_url)


def _consume(projection: "Projection", state_url: str | None) -> None:
    from kinguin_streams.cli import wiring
    from kinguin_streams.cli.settings import load
    from kinguin_streams.consumers.effect import StateEffect
    from kinguin_streams.consumers.loop import ConsumeLoop
    from kinguin_streams.consumers.store import StateStore
    from kinguin_streams.telemetry.logs import configure
    from kinguin_streams.telemetry.traces import traces

    settings = load(state={"url": state_url})
    configure(settings.log.level, settings.log.format, in_background=True)
    with wiring.publisher(settings, client_id=f"kinguin-streams-{projection.name}") as publisher:
        # After the publisher: where nobody has said where Kafka is, no database is left behind.
        store = StateStore(settings.state, projection)
        loop = ConsumeLoop(
            StateEffect(projection, store),
            kafka=wiring.kafka(settings),
            topics=wiring.topics(settings),
            settings=settings.consumer,
            decoder=wiring.decoder(settings),
            encoder=wiring.dead_letter_encoder(settings),
            publisher=publisher,
            traces=traces(f"kinguin-streams-{projection.name}"),
        )
        interrupted = False

        def stop(signal_number: int, _frame: "FrameType | None") -> None:
            nonlocal interrupted
            interrupted = interrupted or signal_number == signal.SIGINT
            loop.stop()

        signal.signal(signal.SIGTERM, stop)
        signal.signal(signal.SIGINT, stop)
        loop.run()
    store.close()
    if interrupted:
        raise typer.Exit(130)
