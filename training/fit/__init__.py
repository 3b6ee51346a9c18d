"""How do photographs become a bundle in one command? Every choice is said and settable, every step resumable."""
