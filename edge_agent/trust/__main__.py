"""`python -m edge_agent.trust`: the child of `edge_agent.trust.child`."""

import logging
import sys

from edge_agent.trust.child import serve

if __name__ == "__main__":
    # The signing library imports whatever it finds for tokens; verifying needs none of it, and 3 MB are 3 MB.
    sys.modules["pkcs11"] = None  # type: ignore[assignment]
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    serve()
