"""Which images does a run see, in which order and from which view?"""
