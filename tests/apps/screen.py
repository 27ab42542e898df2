"""A process on a pseudo-terminal: what is typed, what is shown, and Ctrl-C as people press it."""

import os
import pty
import re
import select
import subprocess
import time
from contextlib import suppress


class Screen:
    """A process on a pseudo-terminal."""

    def __init__(self, argv, env):
        self.master, slave = pty.openpty()
        self.process = subprocess.Popen(
            argv, stdin=slave, stdout=slave, stderr=slave, env=env, start_new_session=True, preexec_fn=_own_terminal
        )
        os.close(slave)
        self.shown = ""

    def type(self, text):
        os.write(self.master, text.encode())

    def until(self, pattern, timeout=60.0):
        """Everything up to the first place where the pattern fits, which is taken off."""
        end = time.monotonic() + timeout
        while not (found := re.search(pattern, self.shown)):
            ready, _, _ = select.select([self.master], [], [], max(0, end - time.monotonic()))
            assert ready, f"no {pattern!r} in {self.shown!r}"
            try:
                self.shown += os.read(self.master, 65536).decode(errors="replace")
            except OSError:  # the other end is closed
                assert re.search(pattern, self.shown), f"it ended, no {pattern!r} in {self.shown!r}"
        before, self.shown = self.shown[: found.end()], self.shown[found.end() :]
        return before

    def interrupt(self, happened):
        """Ctrl-C, once more where nothing happens in ten seconds: Python's input() misses a signal between two waits for a key."""
        for _ in range(2):
            time.sleep(0.3)  # people do not type within microseconds of the prompt
            self.type("\x03")
            end = time.monotonic() + 10
            while not happened() and time.monotonic() < end:
                if select.select([self.master], [], [], 0.1)[0]:
                    with suppress(OSError):  # the other end is closed
                        self.shown += os.read(self.master, 65536).decode(errors="replace")
            if happened():
                return

    def ends(self):
        code = self.process.wait(timeout=60)
        os.close(self.master)
        return code


def _own_terminal():
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # so that Ctrl-C, typed, is a signal
