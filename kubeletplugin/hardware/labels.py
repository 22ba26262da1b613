"""Labels of SELinux: what the agent mounts into containers has to have one that they may read. Called by the agent.

New files take the label of their folder, so the folders of shares and libraries get it once, with what is in them.
Where this fails, containers with a share get no driver (the gate fails closed), which is why it is told loudly.
"""

import errno
import logging
import os
from pathlib import Path

_log = logging.getLogger(__name__)

_ATTRIBUTE = "security.selinux"
_LABEL = b"system_u:object_r:container_file_t:s0\0"
"""Any container may use it: which files it sees is decided by its mounts."""
_NO_LABELS = (errno.ENODATA, errno.ENOTSUP)


def label_for_containers(*folders: Path) -> None:
    """Label folders and what is in them for use in containers; nothing where the system has no labels."""
    for folder in folders:
        for path in (folder, *folder.rglob("*")):
            try:
                if os.getxattr(path, _ATTRIBUTE, follow_symlinks=False) != _LABEL:
                    os.setxattr(path, _ATTRIBUTE, _LABEL, follow_symlinks=False)
            except FileNotFoundError:
                continue  # unprepared meanwhile
            except OSError as error:
                if error.errno in _NO_LABELS:
                    return
                facts = {"file": str(path), "error": str(error)}
                _log.error("SELinux label not set: containers with a share may get no GPU", extra=facts)
                return
