"""How does the graph of a bundle run in another runtime, and does it decide there as in ONNX Runtime?

What is written is no bundle: the service does not run it. No HTTP.
"""
