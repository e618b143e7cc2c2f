"""The one loop around the core, and what it needs: dispatch of commands, the clock, the local control socket."""
