"""`edge-agent serve`, piece by piece."""
