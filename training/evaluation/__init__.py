"""How good is a network, and where do its thresholds lie?"""
