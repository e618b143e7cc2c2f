"""Feeds models from MQTT topics or inputs of an IoT Edge module, in a process of its own (ADR 28, 35).

`python -m edge_agent.binding` asks the unix sockets of modules like any client, so a swap or a crash of a worker costs
it nothing. Decisions are functions without a clock, threads or sockets (`questions`, `answers`, `waiting`, `loops`,
`patience`); around them are `connection` (paho, and nothing else has it), `broker`, `asking` (the module's socket),
`lane`, `module` and `process`. `keeper` is the agent's side: it starts the process, restarts it and ends it.
"""
