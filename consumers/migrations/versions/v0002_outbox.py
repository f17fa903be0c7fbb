"""The outbox: which states the derived topics have not been told of yet."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

Text = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def upgrade() -> None:
    """Make it, and queue every state there is: their topics are empty."""
    op.create_table(
        "projection_outbox",
        sa.Column("projection", Text, primary_key=True),
        sa.Column("generation", sa.Integer, primary_key=True),
        sa.Column("store", Text, primary_key=True),
        sa.Column("id", Text, primary_key=True),
        sa.Column("revision", sa.BigInteger, nullable=False),
        sqlite_with_rowid=False,
    )
    # Product changes have had no revisions so far.
    op.execute(
        "INSERT INTO projection_state (projection, generation, store, id, state, revision) "
        "SELECT DISTINCT 'product-changes', generation, store, CAST(kinguin_id AS TEXT), '', 1 FROM product_change"
    )
    op.execute(
        "INSERT INTO projection_outbox (projection, generation, store, id, revision) "
        "SELECT projection, generation, store, id, revision FROM projection_state "
        "WHERE projection = 'product-changes' OR (projection = 'order-state' AND state <> '')"
    )
