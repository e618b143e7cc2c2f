"""Vectors of the contract, run by those who verify and by those who sign."""
