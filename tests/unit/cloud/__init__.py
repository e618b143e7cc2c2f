"""The registry's cores, configuration and database."""
