"""`python -m edge_agent.delta`: decodes one delta. Started by the agent."""

from edge_agent.delta.child import main

main()
