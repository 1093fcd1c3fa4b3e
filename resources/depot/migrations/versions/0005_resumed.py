"""How many runs of a trip were asked for before its route was last resumed."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    op.add_column("depot_trips", sa.Column("launches_before_resume", sa.Integer, nullable=False, server_default="0"))
