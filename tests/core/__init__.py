"""The agent's pure core, driven without any I/O."""
