"""A fleet of simulated devices against a real registry and broker: one process, no thread a device."""
