"""Deltas between releases of models: pairs of every kind made here with fixed seeds, other tools, ours, figures."""
