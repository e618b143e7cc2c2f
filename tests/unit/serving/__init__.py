"""Tests of the agent's side of serving, without worker processes."""
