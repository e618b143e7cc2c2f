"""Alembic's folder. New steps are new files in `versions/`; a step that shipped never changes."""
