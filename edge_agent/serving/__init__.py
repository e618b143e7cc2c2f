"""The agent's side of serving: owns the listening sockets, and starts, proves, swaps and watches worker processes.

Nothing here imports numpy or an inference runtime; what needs them lives in `edge_agent.worker`, another process.
"""
