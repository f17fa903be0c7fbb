"""What becomes of a spooled event that Kafka will never take: the dead letter of its request. Decides only; sends nothing."""

from dataclasses import dataclass

from kinguin_streams.ingress.decide import REFUSED_BY_KAFKA
from kinguin_streams.ingress.spool_file import Spooled
from kinguin_streams.schemas.codec import Decoder, RecordEncoder, RegistryNeeded, UndecodableRecord, UnknownSchema
from kinguin_streams.schemas.dead_letters import from_ingress
from kinguin_streams.schemas.events import OrderComplete, OrderStatus, ProductUpdate
from kinguin_streams.schemas.outgoing import OutgoingRecord, outgoing
from kinguin_streams.schemas.topics import Topics


class NoDeadLetter(Exception):
    """This process can make no dead letter of the record: it is one itself, or its value is not to be read here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusals:
    """Makes dead letters of spooled events."""

    topics: Topics
    decoder: Decoder
    encoder: RecordEncoder

    def dead_letter(self, spooled: Spooled) -> OutgoingRecord:
        """Return the dead letter that the request would have become, had Kafka refused its event at once.

        Same id, reason, body and time, and so the same record however often it is made. In place of the request's headers,
        which the spool does not have, it keeps those of the event's record: `ce_id` is its eventId.
        Raises NoDeadLetter, or what the encoder raises while there is no registry.
        """
        try:
            event = self.decoder.decode(spooled.record.value)
        except (UndecodableRecord, UnknownSchema, RegistryNeeded) as unreadable:
            raise NoDeadLetter(f"its value cannot be read here: {unreadable}") from unreadable
        if not isinstance(event, ProductUpdate | OrderStatus | OrderComplete):
            raise NoDeadLetter(f"it is a {event.record_name} itself")
        letter = from_ingress(
            store=event.store,
            event=event.record_name,
            reason=REFUSED_BY_KAFKA,
            detail=spooled.refused or "",
            body=event.raw,
            headers=spooled.record.headers,
            received_at_ms=event.received_at_ms,
        )
        came_with = {name: value.decode("latin-1") for name, value in spooled.record.headers}
        return outgoing(letter, self.topics, self.encoder, came_with.get("traceparent"), came_with.get("tracestate"))
