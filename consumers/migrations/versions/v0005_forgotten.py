"""Forgetting: which keys were forgotten, and up to when, so that a rebuild leaves out what was received before."""

import time

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"

Text = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def upgrade() -> None:
    """Make the table; take every key of a live fold that has no state for one that was forgotten now.

    A row without a state may also be there because a rebuild did not find the key any more, or `state verify --repair` had
    to say that it is gone; nothing tells them apart. A rebuild has taken all of them for forgotten until now, and bringing
    back what somebody wished away is the worse mistake. What a consumer has not read yet takes effect as ever, but a later
    rebuild leaves it out for these keys. An order that was known again by a later event is not seen here: a rebuild knows
    it from all of its records, unless it is forgotten once more.
    Rows with revision 0 were only locked. Products have their state elsewhere, and are never forgotten.

    A rebuild that was begun has taken in what was forgotten: it begins anew.
    """
    op.create_table(
        "projection_forgotten",
        sa.Column("projection", Text, primary_key=True),
        sa.Column("store", Text, primary_key=True),
        sa.Column("id", Text, primary_key=True),
        sa.Column("forgotten_at_ms", sa.BigInteger, nullable=False),
        sqlite_with_rowid=False,
    )
    without_state = sa.text(
        "INSERT INTO projection_forgotten (projection, store, id, forgotten_at_ms) "
        "SELECT state.projection, state.store, state.id, :now_ms FROM projection_state AS state "
        "JOIN projection ON projection.name = state.projection AND projection.live_generation = state.generation "
        "WHERE state.state = '' AND state.revision > 0 AND state.projection <> 'product-changes'"
    )
    op.execute(without_state.bindparams(sa.bindparam("now_ms", time.time_ns() // 1_000_000, sa.BigInteger)))
    op.execute("DELETE FROM projection_build")
