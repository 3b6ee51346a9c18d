"""What do reviewed images of the stream say about the thresholds of the bundle that decided them?

Scores and labels come from the ledger, so neither the images nor the network are needed again.
"""

from service.recalibrate.command import add_arguments, main

__all__ = ["add_arguments", "main"]
