"""The contract: what one side writes the other reads as the same, and nothing else is accepted."""
