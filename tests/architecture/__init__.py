"""The laws of the architecture, read from the source and not from running it."""
