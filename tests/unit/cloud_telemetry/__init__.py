"""The collector, the lake, queries, metrics and the broker's configuration, each by itself."""
