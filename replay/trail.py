"""What has become of a dead letter, step by step. Pure; the record goes into the compacted topic `dead-letter.trail`."""

from typing import Final

from kinguin_streams.replay.dead_letters import Found, LetterState
from kinguin_streams.schemas.events import DeadLetterTrail

MAX_STEPS: Final = 20
MAX_WHY_CHARACTERS: Final = 1_000


def step(
    found: Found, state: LetterState, *, at_ms: int, by: str, why: str | None = None, redrive_id: str | None = None
) -> DeadLetterTrail:
    """Return the trail with one step more. A redrive (redrive_id) counts as an attempt, whatever came of it."""
    before = () if found.trail is None else found.trail.steps
    last_ms = 0 if found.trail is None else found.trail.at_ms
    at_ms = max(at_ms, last_ms + 1)  # clocks of two machines differ; the later step counts
    taken = (at_ms, state, None if why is None else why[:MAX_WHY_CHARACTERS], by, redrive_id)
    return DeadLetterTrail(
        dead_letter_id=found.id,
        state=state,
        attempts=found.attempts + (redrive_id is not None),
        at_ms=at_ms,
        steps=(*before, taken)[-MAX_STEPS:],
    )


def after_redrive(found: Found, refusal: str | None, most_attempts: int) -> LetterState:
    """Return what a redrive has made of it. refusal: why it was refused, None if it was not."""
    if refusal is None:
        return "redriven"
    return "parked" if found.attempts + 1 >= most_attempts else "refused"
