"""The first tables: projections, their offsets, their states, and product changes."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

# In the order of code points, as everywhere else.
Text = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def upgrade() -> None:
    """Make them. Written out, not taken from tables.py: that one moves on, this one stays what it did."""
    op.create_table(
        "projection",
        sa.Column("name", Text, primary_key=True),
        sa.Column("live_generation", sa.Integer, nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
    )
    op.create_table(
        "projection_offset",
        sa.Column("projection", Text, primary_key=True),
        sa.Column("generation", sa.Integer, primary_key=True),
        sa.Column("cluster_id", Text, primary_key=True),
        sa.Column("topic_id", Text, primary_key=True),
        sa.Column("topic", Text, primary_key=True),
        sa.Column("partition", sa.Integer, primary_key=True),
        sa.Column("next_offset", sa.BigInteger, nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "projection_state",
        sa.Column("projection", Text, primary_key=True),
        sa.Column("generation", sa.Integer, primary_key=True),
        sa.Column("store", Text, primary_key=True),
        sa.Column("id", Text, primary_key=True),
        sa.Column("state", Text, nullable=False),
        sa.Column("revision", sa.BigInteger, nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "product_change",
        sa.Column("generation", sa.Integer, primary_key=True),
        sa.Column("store", Text, primary_key=True),
        sa.Column("kinguin_id", sa.BigInteger, primary_key=True),
        sa.Column("event_id", Text, primary_key=True),
        sa.Column("updated_at_ms", sa.BigInteger, nullable=False),
        sa.Column("product_id", Text, nullable=False),
        sa.Column("qty", sa.BigInteger),
        sa.Column("text_qty", sa.BigInteger),
        sa.Column("price_micros", sa.BigInteger),
        sa.Column("cheapest_offer_ids", Text),
        sa.Column("set_aside", sa.Boolean, nullable=False),
        sa.Column("received_at_ms", sa.BigInteger, nullable=False),
        sa.Column("topic", Text, nullable=False),
        sa.Column("partition", sa.Integer, nullable=False),
        sa.Column("offset", sa.BigInteger, nullable=False),
        sqlite_with_rowid=False,
    )
