"""The collector: MQTT batches and reports, each stored exactly once, acknowledged only when durable."""
