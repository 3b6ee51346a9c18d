"""What the score command refuses, and how it names the faults of files."""

import errno

from service.errors import TailGuardError

SLUGS = {
    errno.ENOENT: "not-found",
    errno.ENOTDIR: "not-found",
    errno.EACCES: "permission-denied",
    errno.EPERM: "permission-denied",
    errno.EISDIR: "not-a-file",
    errno.ENXIO: "not-a-file",  # a socket
}


class ScoreError(TailGuardError):
    """The command cannot start or go on; nothing stands under the name of the output."""


def slug(error: OSError) -> str:
    """The kind of a file that cannot be read, in the manner of service.errors."""
    return SLUGS.get(error.errno or 0, "unreadable")
