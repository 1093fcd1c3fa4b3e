"""What people decided about messages, and why; how many messages a route has received."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.create_table(
        "depot_decisions",
        sa.Column("message", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("generation", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("what", sa.Text, primary_key=True),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
    )
    op.add_column("depot_routes", sa.Column("received", sa.BigInteger, nullable=False, server_default="0"))
    op.execute("UPDATE depot_routes SET received = (SELECT count(*) FROM depot_messages m WHERE m.route = depot_routes.route)")
