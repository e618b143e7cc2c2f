"""Connections of one device to the cloud, one module a protocol; each implements `ports.Link`."""
