"""What should a person look at, and what did they say? Kept images grouped by likeness, labels, claims, export, import.

No HTTP. Groups are made in a process of its own, the only part of the service that loads scikit-learn.
"""
