"""Decisions of the registry as pure functions: no clock, randomness, file, socket, thread or database."""
