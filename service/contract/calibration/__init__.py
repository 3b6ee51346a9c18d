"""How do calibration images become thresholds, p-values and what they promise?

Shared by training, which measures images, and by recalibration, which reads scores from a ledger: numpy alone.
"""
