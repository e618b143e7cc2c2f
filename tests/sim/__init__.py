"""Worlds under virtual time."""
