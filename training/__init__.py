"""The offline side of TailGuard: images to a bundle. Start reading at trainer.py."""

import os

import service.contract  # noqa: F401 - with it libraries are told to report nothing (service/__init__.py)

# The threads of an operation wait for each other at its end, with GNU's OpenMP in a loop that takes the core from the
# one that is waited for: beside one busy program a step of a head took ten times as long (LOG.md). Set before torch is
# imported, and for all that is started from here. What somebody has set stays.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
