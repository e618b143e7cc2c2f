"""Shrinks the agent's patience, and nothing else: on PYTHONPATH of an agent, python runs it in each of its processes.

With the real numbers (twenty seconds of silence, a minute of too little) a test of slow servers would take minutes.
"""

import contextlib

with contextlib.suppress(ImportError):
    from edge_agent import limits

    for _name, _value in {"STALL_MS_MAX": 3_000, "WINDOW_MS": 1_500, "DOCUMENT_MS_MAX": 10_000}.items():
        assert hasattr(limits, _name), f"edge_agent.limits has no {_name} any more"
        setattr(limits, _name, _value)
