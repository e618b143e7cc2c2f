"""The whole system in rough weather: real processes, a real broker, and everything that can go wrong on the way."""
