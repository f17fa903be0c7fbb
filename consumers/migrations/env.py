"""What alembic runs: the migrations, in the transaction that consumers/database.py has begun. Configures no logging."""

from alembic import context

from kinguin_streams.consumers.tables import schema_version

context.configure(connection=context.config.attributes["connection"], version_table=schema_version.name)
with context.begin_transaction():
    context.run_migrations()
