"""The commands of `packager`, by theme; `packager.cli` puts them together."""
