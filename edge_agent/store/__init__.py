"""What the agent keeps on disk: blobs, slots, the journal and the spool. Nothing is trusted before it is durable."""
