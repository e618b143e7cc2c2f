"""The author's side: builds, signs, publishes and ships model bundles."""

import os

# onnxruntime sends telemetry from the moment it is imported, unless this is set before (ADR 0002).
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
