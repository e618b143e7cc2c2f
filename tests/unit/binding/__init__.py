"""Decisions of the MQTT binding."""
