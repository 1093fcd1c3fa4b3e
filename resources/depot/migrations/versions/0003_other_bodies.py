"""How many deliveries had a message's key, but another body."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.add_column("depot_messages", sa.Column("other_bodies", sa.Integer, nullable=False, server_default="0"))
    op.add_column("depot_routes", sa.Column("other_bodies", sa.BigInteger, nullable=False, server_default="0"))
