"""Where processes share a study: a journal file that all of them append to, or a database by its URL.

Optuna's own journal waits for the disk at each of some twenty entries of a trial, and its lock outlives a process that is killed.  Here the
operating system holds the lock, and lets go of it with the process; what was written is safe from a kill, though not from a power cut.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from quamba_edge.errors import BadUsage, Missing

DRIVERS = {"psycopg": "psycopg[binary]", "psycopg2": "psycopg2-binary", "MySQLdb": "mysqlclient"}  # module → package
TRIES = 4


def open_storage(where: str | Path) -> Any:
    """An Optuna storage.  where: a journal file, made if it is not there, or a URL such as postgresql://user@host/db.

    Missing without optuna or a database's driver, BadUsage for a place that cannot be opened.
    """
    if not find_spec("optuna"):
        raise Missing("search needs optuna, which is not here: pip install 'quamba-edge[search]'")
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        if "://" in str(where):
            return _database(str(where))
        Path(where).open("ab").close()
        return optuna.storages.JournalStorage(_journal(Path(where)))
    except ImportError as e:
        driver = getattr(e.__cause__, "name", None) or str(e)
        package = DRIVERS.get(driver, driver)
        raise Missing(
            f"--study {where} needs the driver {driver}, which is not here: pip install '{package}'"
        ) from None
    except Exception as e:  # SQLAlchemy's and drivers' differ by version
        reason = (str(e).strip().splitlines() or [type(e).__name__])[0][:200]
        raise BadUsage(
            f"--study {where} cannot be opened ({reason}): expected a file in a folder that exists, or a URL like postgresql://user@host/db"
        ) from None


def _database(url: str) -> Any:
    """Two processes that come to an empty database at once both make its tables; whoever loses finds them made a moment later."""
    from optuna.storages import RDBStorage
    from sqlalchemy.exc import IntegrityError, ProgrammingError

    for _ in range(TRIES - 1):
        try:
            return RDBStorage(url)
        except (IntegrityError, ProgrammingError):
            time.sleep(1.0)
    return RDBStorage(url)


def _journal(path: Path) -> Any:
    from optuna.storages.journal import BaseJournalBackend

    class Journal(BaseJournalBackend):
        """One JSON object a line.  A line that a killed process left unfinished is cut off by whoever appends next."""

        def __init__(self) -> None:
            self._starts = [0]  # byte at which entry n begins, as far as read

        def read_logs(self, log_number_from: int) -> Iterator[dict[str, Any]]:
            number = min(log_number_from, len(self._starts) - 1)
            with open(path, "rb") as file:
                file.seek(self._starts[number])
                for line in file:
                    if not line.endswith(b"\n"):
                        return  # being written just now
                    if number + 1 == len(self._starts):
                        self._starts.append(self._starts[number] + len(line))
                    if number >= log_number_from:
                        yield json.loads(line)
                    number += 1

        def append_logs(self, logs: list[dict[str, Any]]) -> None:
            text = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs)
            with open(path, "r+b") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                end = file.seek(0, os.SEEK_END)
                if end and (file.seek(end - 1), file.read(1))[1] != b"\n":
                    file.seek(0)
                    file.truncate(file.read().rfind(b"\n") + 1)
                    file.seek(0, os.SEEK_END)
                file.write(text.encode())

    return Journal()
