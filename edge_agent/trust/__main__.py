"""`python -m edge_agent.trust`: the child of `edge_agent.trust.child`."""

import logging
import sys

from edge_agent.trust.child import serve

if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    serve()
