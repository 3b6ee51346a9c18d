"""What would thresholds have cost on the calibration images, and which cost least?

Costs come from a file, outcomes of the calibration images from the bundle; neither images nor the graph are needed.
"""
