"""The bundles of models/: what they are held to, with real photographs and fresh images."""
