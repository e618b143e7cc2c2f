"""Helpers that several test folders share: processes, ports, brokers, databases, needed programs."""
