"""The offline side of TailGuard: images to a bundle. Start reading at trainer.py."""

import os

import service.contract  # noqa: F401 - with it libraries are told to report nothing (service/__init__.py)

# The threads of an operation wait for each other at its end, in GNU's OpenMP in a loop of milliseconds that takes the
# core from the one that is waited for: beside other programs a step of a head took up to 16 times as long. A loop of
# some microseconds is as fast alone (LOG.md). Set before torch is imported, and for all that is started from here.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
