"""The data plane: one process that loads the models of one bundle and answers inference requests.

Entry: `python -m edge_agent.worker`, started by `edge_agent.serving`. Never imported by the agent's own process.
"""

import os

# onnxruntime >= 1.29 on Linux makes a device id and reports to its vendor unless this is set before it is imported, so
# it is set before anything in this package can import it. Not a default: nobody switches it on by the environment.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
