"""The agent's process, stopped at every system call that changes its disk, and started again."""
