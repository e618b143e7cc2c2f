"""The collector and the broker as real processes over real sockets."""
