"""Every attack of the threat list, played against a real agent, a real registry and a real broker."""
