"""Run by Alembic inside the transaction that `Database.migrate` opened: all steps are taken, or none."""

from alembic import context

from cloud_registry.adapters.sql.tables import METADATA

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=METADATA,
    transactional_ddl=True,
    render_as_batch=True,
)
context.run_migrations()
