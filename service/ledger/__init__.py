"""What was decided, and what turned out to be true? One writer thread, two databases, the figures drawn from them."""
