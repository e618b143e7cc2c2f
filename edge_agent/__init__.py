"""The device side: decides, installs, serves, reports."""
