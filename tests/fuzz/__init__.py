"""Fuzzing of everything in a worker that reads what a client sends: `python -m tests.fuzz --minutes 10`."""
