"""What does the service reach and cost under load? A load generator, the in-process limit, other servers beside it.

`python -m tests.bench` measures this checkout; README.md shows what was measured. Nothing here is in the product.
"""
