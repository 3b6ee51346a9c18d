"""How are folders of images scored without a server? Through the decode, engine and decision of the service.

`results.parquet`, `.csv` or `.jsonl`: one row per file, in the order of the input. A file that cannot be scored gets a
row with its error. Floats are those of POST /classify; with another --batch-images the last bits may differ, as
the kernels sum in another order.
"""

from service.score.command import add_arguments, main

__all__ = ["add_arguments", "main"]
