"""How does a network learn? METHODS, one row per method, and the parts that its rows name."""
