"""The tables, in SQLAlchemy Core: one definition for SQLite and PostgreSQL. Migrations in `migrations/` make them.

Names say `projection`, so that they may live beside other tables in one PostgreSQL database. `generation` is which
make of a projection a row belongs to: a rebuild fills another one beside the live one.
"""

from typing import Final

from sqlalchemy import BigInteger, Boolean, Column, Integer, MetaData, String, Table
from sqlalchemy import Text as AnyText

REVISIONS: Final = ("0001", "0002", "0003", "0004", "0005")
"""The schema versions there have been, oldest first; the last one is what this code reads and writes."""

# In the order of code points, which is Python's and SQLite's too: readers and locks go by it.
Text = AnyText().with_variant(AnyText(collation="C"), "postgresql")

NONE_YET: Final = ""
"""The state of a key whose row is there only to be locked, or to count revisions: of an order that was forgotten, and of
a product, whose state is its rows. No JSON is empty."""

PROVENANCE: Final = ("received_at_ms", "topic", "partition", "offset")
"""Columns that say which delivery of an event was seen, and not what it says."""

metadata = MetaData()

schema_version = Table("kinguin_schema_version", MetaData(), Column("version_num", String(32), primary_key=True))
"""Alembic's own table under a name of ours; not part of `metadata`, because alembic makes it."""

projection = Table(
    "projection",
    metadata,
    Column("name", Text, primary_key=True),
    Column("live_generation", Integer, nullable=False),
    # The fold's version that made the live generation.
    Column("version", Integer, nullable=False),
)

projection_build = Table(
    "projection_build",
    metadata,
    Column("projection", Text, primary_key=True),
    # Filled beside the live one until it takes its place.
    Column("generation", Integer, nullable=False),
    # The fold's version that makes it.
    Column("version", Integer, nullable=False),
)

projection_offset = Table(
    "projection_offset",
    metadata,
    Column("projection", Text, primary_key=True),
    Column("generation", Integer, primary_key=True),
    Column("cluster_id", Text, primary_key=True),
    Column("topic_id", Text, primary_key=True),
    Column("topic", Text, primary_key=True),
    Column("partition", Integer, primary_key=True),
    # Every record below it has taken effect in the same database, none from it on.
    Column("next_offset", BigInteger, nullable=False),
    sqlite_with_rowid=False,
)

projection_state = Table(
    "projection_state",
    metadata,
    Column("projection", Text, primary_key=True),
    Column("generation", Integer, primary_key=True),
    Column("store", Text, primary_key=True),
    Column("id", Text, primary_key=True),
    # JSON as text: U+0000 is escaped in it, which PostgreSQL's text would otherwise refuse.
    Column("state", Text, nullable=False),
    # Grows by one with every write.
    Column("revision", BigInteger, nullable=False),
    # In SQLite with a rowid, unlike the others: its states are long, see the migration 0003.
)

projection_outbox = Table(
    "projection_outbox",
    metadata,
    Column("projection", Text, primary_key=True),
    Column("generation", Integer, primary_key=True),
    Column("store", Text, primary_key=True),
    Column("id", Text, primary_key=True),
    # Of the state that the derived topic has not confirmed yet; the newest wins.
    Column("revision", BigInteger, nullable=False),
    sqlite_with_rowid=False,
)

projection_forgotten = Table(
    "projection_forgotten",
    metadata,
    Column("projection", Text, primary_key=True),
    Column("store", Text, primary_key=True),
    Column("id", Text, primary_key=True),
    # A generation that is built leaves out what was received up to then.
    Column("forgotten_at_ms", BigInteger, nullable=False),
    sqlite_with_rowid=False,
)

product_change = Table(
    "product_change",
    metadata,
    Column("generation", Integer, primary_key=True),
    Column("store", Text, primary_key=True),
    Column("kinguin_id", BigInteger, primary_key=True),
    Column("event_id", Text, primary_key=True),
    Column("updated_at_ms", BigInteger, nullable=False),
    Column("product_id", Text, nullable=False),
    Column("qty", BigInteger),
    Column("text_qty", BigInteger),
    # Millionths of a euro: exact, and a number to SQL in both databases.
    Column("price_micros", BigInteger),
    # A JSON list of strings.
    Column("cheapest_offer_ids", Text),
    Column("set_aside", Boolean, nullable=False),
    Column("received_at_ms", BigInteger, nullable=False),
    Column("topic", Text, nullable=False),
    Column("partition", Integer, nullable=False),
    Column("offset", BigInteger, nullable=False),
    sqlite_with_rowid=False,
)
