"""CSV that readers take apart as it was put together."""

import csv
from collections.abc import Iterable
from typing import IO


class CommaSeparated:
    """Rows to a text file that was opened with newline="", each on a line that ends with a newline.

    Python's writer puts a carriage return within a field between quotes only where lines end with one, and a reader
    takes one that stands there bare for the end of the row.
    """

    def __init__(self, file: IO[str]) -> None:
        self._file = file
        self._writer = csv.writer(self, lineterminator="\r\n")

    def write(self, line: str) -> int:
        """What Python's writer calls, once for a row."""
        return self._file.write(line.removesuffix("\r\n") + "\n")

    def row(self, values: Iterable[object]) -> None:
        self._writer.writerow(values)

    def rows(self, rows: Iterable[Iterable[object]]) -> None:
        self._writer.writerows(rows)
