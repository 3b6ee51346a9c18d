"""What a machine with a GPU can say of this project that one without cannot: `make gpu-check`, python -m tests.gpu.

Steps in order of worth (steps.py), each a few existing commands (driver.py) that leave one JSON file of figures.
"""
