"""Which images does a run see: from which files, on which side of the split, in which order and view?"""
