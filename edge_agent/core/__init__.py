"""The agent's decisions as a pure machine: events and the time go in, commands come out (ADR 0003)."""
