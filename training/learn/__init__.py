"""How does a model learn what people have said of the images it refused?

The labelled images join the data of a run, its head learns again, and the new model is held against the old one.
"""
