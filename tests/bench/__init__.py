"""Benchmarks that need more than the service: a larger graph, and other model servers."""
