"""Simulated fleets: the shipped cores under virtual time, or real agents against live services."""
