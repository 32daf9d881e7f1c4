"""How Alembic runs here: on the connection that `migrate` gives, inside its transaction. There is no alembic.ini."""

from __future__ import annotations

from alembic import context

from shellwego.drivers.store.schema import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    render_as_batch=True,
    transactional_ddl=True,
)
with context.begin_transaction():
    context.run_migrations()
