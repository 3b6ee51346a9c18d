"""How does the service speak the Open Inference Protocol v2?"""
