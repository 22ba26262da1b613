"""How a command ends: with a status, and with words for the person at the terminal where it did not go well.

Called by the command line of the local cluster and by that of the demo.
"""

import errno
import sys
from collections.abc import Callable

from deploy.local.errors import LocalClusterError

INTERRUPTED = 130
"""Exit status of a command that Ctrl-C ended, as shells have it."""
_OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


def run_to_end(name: str, command: Callable[[], int], remedy: str) -> int:
    """Run a command and return its exit status; what it cannot help is said in a line, and no traceback.

    Args:
        name: of the program, before its messages.
        command: what to run.
        remedy: the command that removes what an interrupted one leaves.
    """
    try:
        return command()
    except LocalClusterError as error:
        message, status = str(error), 1
    except OSError as error:
        if error.errno not in _OF_THE_DISK:
            raise
        # Where a write fails, and not an open, nobody knows the file.
        message, status = f"{error.filename or 'the folder of the cluster'}: {error.strerror}", 1
    except KeyboardInterrupt:
        message, status = f"interrupted; what was started goes on, and this removes it: {remedy}", INTERRUPTED
    sys.stderr.write(f"{name}: {message}\n")
    return status
