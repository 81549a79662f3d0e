"""A lock file: one process at a time trains in a run folder, also on shared storage.

The holder touches the file every few seconds. On the holder's own machine the system knows whether
it still runs; from another machine, a file that is no longer touched is a stale lock.
"""

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from segkd.errors import FolderInUseError, TrainingError

BEAT = 10.0  # seconds between two touches
STALE = 35.0  # seconds without a touch after which another machine takes the lock over
# When this process first saw each lock file as it is: (time of the touch, monotonic time).
_seen: dict[Path, tuple[int | None, float]] = {}


class RunLock:
    """The lock of a folder. ``acquire`` and ``release`` come in pairs."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.path = folder, folder / ".lock"
        self._place = self.path.absolute()
        self._token, self._done = uuid.uuid4().hex, threading.Event()
        self._thread: threading.Thread | None = None

    def acquire(self, announce: Callable[[str], None] = print) -> None:
        """Acquires the lock, also a stale one of a dead process.

        Args:
            announce: called with a line of text before waiting for another machine's process.

        Raises:
            FolderInUseError: another process holds it.
            OSError: the folder cannot be written.
        """
        while not self._create():
            held = self._read()
            if held is None:  # has just been released
                continue
            if not self._is_stale(held, announce):
                raise FolderInUseError(self._refusal(held))
            self._take_away(held)
        self._thread = threading.Thread(target=self._touch, daemon=True)
        self._thread.start()

    def looks_held(self) -> bool:
        """Whether another process has the lock, as far as can be told without waiting.

        A lock of another machine is held until its file has not been touched between two calls
        that are ``STALE`` seconds apart.
        """
        held = self._read()
        if held is None or held.get("token") == self._token:
            return False
        if held.get("machine") == _me()["machine"]:
            return _runs(held.get("pid"), held.get("born"))
        return self._untouched() < STALE

    def holder(self) -> str | None:
        """The process that has the lock, e.g. "pid 12 on node3"; None if there is no lock."""
        held = self._read()
        return None if held is None else _process(held)

    def check(self) -> None:
        """Raises TrainingError if another process has taken over the folder."""
        held = self._read()
        if held and held.get("token") != self._token:  # {}: unreadable for now, e.g. by a hiccup
            raise TrainingError(
                f"{self.folder} was taken over by {_who(held)}, because this process was "
                "suspended for a while. It stops here and writes nothing more"
            )

    def release(self) -> None:
        """Removes the lock file; does nothing if the lock is not held."""
        if self._thread is None:
            return
        self._done.set()
        self._thread.join()
        self._thread = None
        with contextlib.suppress(OSError):
            if (self._read() or {}).get("token") == self._token:
                self.path.unlink()

    def _create(self) -> bool:
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            file = os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        except FileExistsError:
            return False
        facts = {"token": self._token, "started": time.strftime("%Y-%m-%d %H:%M:%S"), **_me()}
        try:
            os.write(file, json.dumps(facts).encode())
        except OSError:
            self.path.unlink(missing_ok=True)
            raise
        finally:
            os.close(file)
        return True

    def _read(self) -> dict[str, Any] | None:
        """The contents of the lock file; {} if unreadable, None if there is no lock."""
        try:
            held = json.loads(self.path.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValueError):
            return {}
        return held if isinstance(held, dict) else {}

    def _is_stale(self, held: dict[str, Any], announce: Callable[[str], None]) -> bool:
        if held.get("machine") == _me()["machine"]:
            return not _runs(held.get("pid"), held.get("born"))
        left = STALE - self._untouched()  # nothing where `looks_held` has waited for it
        if left > 0:
            announce(
                f"{self.folder}: {_who(held)} may still be training here: waiting {left:.0f} "
                "seconds"
            )
        first = _seen[self._place]
        while self._untouched() < STALE:
            time.sleep(min(1.0, STALE / 5))
            if _seen[self._place] != first:
                return False
        return True

    def _untouched(self) -> float:
        """Seconds for which this process has seen the lock file untouched."""
        now, touched = time.monotonic(), self._touched()
        if self._place not in _seen or _seen[self._place][0] != touched:
            _seen[self._place] = touched, now
        return now - _seen[self._place][1]

    def _touched(self) -> int | None:
        """When the file was last touched; opened first, as network storage may cache the time."""
        try:
            with open(self.path, "rb") as file:
                return os.fstat(file.fileno()).st_mtime_ns
        except OSError:
            return None

    def _take_away(self, held: dict[str, Any]) -> None:
        """Removes a stale lock; of several processes that try, exactly one succeeds."""
        aside = self.path.with_name(f".lock.{self._token}")
        with contextlib.suppress(FileNotFoundError):
            os.rename(self.path, aside)
            taken = json.loads(aside.read_bytes() or b"{}") if held else {}
            if held and taken.get("token") != held.get("token"):  # a new one: put it back
                os.rename(aside, self.path)
            else:
                aside.unlink()

    def _touch(self) -> None:
        while not self._done.wait(BEAT):
            with contextlib.suppress(OSError):
                if (self._read() or {}).get("token") == self._token:
                    os.utime(self.path)

    def _refusal(self, held: dict[str, Any]) -> str:
        return (
            f"{self.folder} is being trained by {_who(held)}, since {held.get('started', '?')}. "
            "Wait for it or stop it, or choose another folder: out=runs/NAME. If you are sure that "
            f"this process is gone, delete {self.path}"
        )


def _who(held: dict[str, Any]) -> str:
    return f"another process: {_process(held)}"


def _process(held: dict[str, Any]) -> str:
    return f"pid {held.get('pid', '?')} on {held.get('host', '?')}"


def _me() -> dict[str, Any]:
    """This process, and the machine (or container) whose process ids it has."""
    host, pid = socket.gethostname(), os.getpid()
    boot = _line(Path("/proc/sys/kernel/random/boot_id"))
    space = ""
    with contextlib.suppress(OSError):
        space = os.readlink("/proc/self/ns/pid")  # containers have process ids of their own
    return {"host": host, "pid": pid, "born": _born(pid), "machine": f"{host} {boot} {space}"}


def _runs(pid: object, born: object) -> bool:
    """Whether a process of this machine runs, and was started at ``born``."""
    if not isinstance(pid, int):
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    facts = _facts(pid)
    dead = facts is not None and facts[0] in "ZX"  # ended, but not yet reaped by its parent
    return not dead and _born(pid) == born


def _born(pid: int) -> str | None:
    """Start time of a process in the system's units; None where unknown."""
    facts = _facts(pid)
    return facts[19] if facts else None


def _facts(pid: int) -> list[str] | None:
    """The fields of /proc/PID/stat after the name, state first."""
    return _line(Path(f"/proc/{pid}/stat")).rpartition(")")[2].split() or None


def _line(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
