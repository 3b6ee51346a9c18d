"""What computes features and logits? Trunk, heads and projection, on one process or on several."""
