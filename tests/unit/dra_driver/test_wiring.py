"""How long-running commands end."""

import subprocess
import sys

# A signal before each line that the main thread runs between its start and the end of its wait.
_SIGNALLED = """
import os, signal, sys
from dra_driver import wiring

def disturb(frame, event, argument):
    if frame.f_code.co_name in ("_serve", "wait", "get"):
        os.kill(os.getpid(), signal.SIGTERM)
    return disturb

class Service:
    def start(self):
        sys._getframe(1).f_trace = disturb
        sys.settrace(disturb)

    def stop(self):
        sys.settrace(None)

    def alive(self):
        return ""

    ready = alive

print(wiring._serve(Service(), "127.0.0.1:0"))
"""


def test_signals_that_come_while_a_command_begins_to_wait_for_them_end_it() -> None:
    done = subprocess.run([sys.executable, "-c", _SIGNALLED], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (0, "0\n"), done.stderr
