"""How Alembic runs here: on the connection that `migrate` gives, inside its transaction. There is no alembic.ini.

Text sorts by code points everywhere, as SQLite and Python sort it; so on PostgreSQL each column of text is made with the
collation "C", whatever the database's own is. It is given at the column's birth, for a change later builds its indexes anew.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import context

from shellwego.drivers.store.schema import metadata


def _sort_by_code_points(column: sa.Column[str], _table: object) -> None:
    if isinstance(column.type, sa.Text) and column.type.collation is None:
        column.type = sa.Text(collation="C")


connection: sa.Connection = context.config.attributes["connection"]
on_postgresql = connection.dialect.name == "postgresql"
context.configure(
    connection=connection,
    target_metadata=metadata,
    render_as_batch=True,
    transactional_ddl=True,
)
if on_postgresql:
    sa.event.listen(sa.Column, "before_parent_attach", _sort_by_code_points)
try:
    with context.begin_transaction():
        context.run_migrations()
finally:
    if on_postgresql:
        sa.event.remove(sa.Column, "before_parent_attach", _sort_by_code_points)
