"""How outlying is an image? SCORES of logits and of reject logits, and those fitted on training features."""
