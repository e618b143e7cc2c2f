"""Parts of the simulator, one by one."""
