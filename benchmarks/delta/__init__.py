"""Deltas between releases of models: pairs of every kind made here with fixed seeds, other tools, ours, figures."""

from benchmarks.delta.running import OPTIONS, QUICK, SUMMARY, run

__all__ = ["OPTIONS", "QUICK", "SUMMARY", "run"]
