"""Pure parts of the hub emulator."""
