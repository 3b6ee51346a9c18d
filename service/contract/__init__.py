"""What do a trained model and the service agree on? Bundle, decision and pixels: all that training may import.

No HTTP, no onnxruntime; of the project this package imports service.errors alone.
"""
