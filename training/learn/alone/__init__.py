"""How does a bundle whose run is gone learn a new class?

Its graph answers as before; behind it stands a gate on the embedding, which hands an image over to a new class.
"""
