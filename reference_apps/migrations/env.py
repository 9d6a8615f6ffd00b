"""What alembic runs for every migration: all that is missing, in the transaction of whoever asked for it."""

from __future__ import annotations

from alembic import context

from reference_apps.feedback_schema import METADATA

context.configure(connection=context.config.attributes["connection"], target_metadata=METADATA)
with context.begin_transaction():
    context.run_migrations()
