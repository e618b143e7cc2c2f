"""The loop around the core, with fakes at every port."""
