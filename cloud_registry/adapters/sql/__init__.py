"""The registry's tables on SQLite or PostgreSQL (SQLAlchemy Core, Alembic)."""
