"""Makes blobs out of others by deltas, in a process of its own that has numpy and zstandard (ADR 0038).

The agent's side (`maker`, `process`, `record`) imports neither; the process's side is `child`.
"""
