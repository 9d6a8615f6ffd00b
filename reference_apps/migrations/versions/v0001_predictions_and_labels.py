"""The first tables: what was answered, and what people say that it should have been."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "predictions",
        sa.Column("request_id", sa.String(128), primary_key=True),
        sa.Column("arm", sa.String(16), primary_key=True),
        sa.Column("user_key", sa.Text, nullable=False),
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("version", sa.Text, nullable=False),
        sa.Column("answer", sa.Text, nullable=False),
        sa.Column("label", sa.Integer),
        sa.Column("latency_s", sa.Double, nullable=False),
        sa.Column("device_s", sa.Double),
        sa.Column("given", sa.Boolean, nullable=False),
        sa.Column("forced", sa.Boolean, nullable=False),
        sa.Column("predicted_at", sa.Double, nullable=False),
    )
    op.create_index("predictions_predicted_at", "predictions", ["predicted_at"])
    op.create_index("predictions_arm", "predictions", ["arm", "version", "predicted_at"])
    op.create_table(
        "labels",
        sa.Column("request_id", sa.String(128), primary_key=True),
        sa.Column("label", sa.Integer, nullable=False),
        sa.Column("labelled_at", sa.Double, nullable=False),
        sa.Column("matched", sa.Boolean, nullable=False),
        sa.Column("late", sa.Boolean, nullable=False),
        sa.Column("revisions", sa.Integer, nullable=False),
    )
    op.create_index("labels_orphans", "labels", ["matched", "labelled_at"])


def downgrade() -> None:
    op.drop_table("labels")
    op.drop_table("predictions")
