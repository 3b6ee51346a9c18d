"""What is done with a finished run? Evaluate, calibrate, export; commands of `tailguard`."""

from training.finished.calibrate import AUTO, Calibrate
from training.finished.commands import Evaluate, Export, OnRun, calibrated

__all__ = ["AUTO", "Calibrate", "Evaluate", "Export", "OnRun", "calibrated"]
