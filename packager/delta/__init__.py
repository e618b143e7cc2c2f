"""Makes deltas between model files, and looks into the formats that hold tensors (ADR 0037)."""
