"""What a person reads when a command of the local cluster or the demo does not end well."""

import errno
import os

import pytest

from deploy.local.endings import run_to_end
from deploy.local.errors import StartError


def _fail(error: BaseException) -> int:
    raise error


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (StartError("no link today"), 1, "demo: no link today\n"),
        (
            OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
            1,
            "demo: the folder of the cluster: No space left on device\n",
        ),
        (
            OSError(errno.EROFS, os.strerror(errno.EROFS), "/state/kubeconfig"),
            1,
            "demo: /state/kubeconfig: Read-only file system\n",
        ),
        (
            KeyboardInterrupt(),
            130,
            "demo: interrupted; what was started goes on, and this removes it: make demo-down\n",
        ),
    ],
)
def test_what_a_command_cannot_help_is_said_in_one_line(
    error: BaseException, status: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_to_end("demo", lambda: _fail(error), remedy="make demo-down") == status
    assert capsys.readouterr().err == said


def test_a_fault_of_the_program_keeps_its_traceback() -> None:
    with pytest.raises(FileNotFoundError):
        run_to_end("demo", lambda: _fail(FileNotFoundError(errno.ENOENT, "no such file")), remedy="")


def test_the_status_of_a_command_that_ends_well_is_its_own() -> None:
    assert run_to_end("demo", lambda: 3, remedy="") == 3
