"""The error of the score command, and the slugs of files that cannot be read."""

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
UNREADABLE = "unreadable"  # any other error, of a disk or a network: it may be over the next time


class ScoreError(TailGuardError):
    """The command cannot start or go on. No output file exists then."""


def slug(error: OSError) -> str:
    """The slug of a file that cannot be read, in the style of those in service.errors."""
    return SLUGS.get(error.errno or 0, UNREADABLE)
