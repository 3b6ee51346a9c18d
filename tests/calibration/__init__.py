"""Does every group keep its promise on fresh images? `python -m tests.calibration.simulate` measures it."""
