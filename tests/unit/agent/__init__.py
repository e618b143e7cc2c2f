"""Parts of the agent, each by itself."""
