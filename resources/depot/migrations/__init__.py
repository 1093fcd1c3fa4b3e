"""Alembic versions of the depot's schema, run by ``resources.depot.migrate``; there is no alembic.ini and no env.py."""
