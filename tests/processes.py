"""Trainings in processes of their own, as a user starts and stops them."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

TESTS = Path(__file__).parent
LIMIT = 600  # seconds until a process counts as hanging, on a busy machine too
RUN = """\
steps: 6
data: {name: toy, batch_size: 4, workers: 0, crop: [32, 48]}
student: {arch: toy}
optim: {lr: 0.05}
eval: {every: 0}
log: {every: 2, tensorboard: false}
runtime: {device: cpu, threads: 1}
save_every: 3
"""


@dataclass
class Ended:
    """How a process ended: exit code, both outputs, seconds from the start (or the signal)."""

    code: int
    text: str
    seconds: float


class Training:
    """``segkd train run.yaml`` in a folder; ``with`` it, no process outlives the block."""

    def __init__(self, folder, *arguments, faults="", processes=1, command=("train", "run.yaml")):
        self.folder, self.flag = Path(folder), Path(folder) / "flag"
        if not (self.folder / "run.yaml").exists():
            (self.folder / "run.yaml").write_text(RUN)
        start = [sys.executable]
        if processes > 1:
            start += ["-m", "torch.distributed.run", "--standalone"]
            start += [f"--nproc-per-node={processes}"]
        self.command = [*start, str(TESTS / "command_worker.py"), *command, *arguments]
        paths = os.pathsep.join([str(TESTS), str(TESTS.parent)])
        self.env = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "FAULTS": faults}
        self.env |= {"FLAG": str(self.flag)}
        self.output = self.folder / "output.txt"

    def __enter__(self):
        self.began = time.monotonic()
        with open(self.output, "w") as file:
            self.process = subprocess.Popen(
                self.command,
                cwd=self.folder,
                env=self.env,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_hear_hangups,
            )
        return self

    def __exit__(self, *error):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def text(self):
        return self.output.read_text()

    def until(self, done, timeout=LIMIT):
        """Waits until ``done()``."""
        end = time.monotonic() + timeout
        while not done():
            assert self.process.poll() is None, self.text()
            assert time.monotonic() < end, self.text()
            time.sleep(0.02)

    def until_text(self, text, timeout=LIMIT):
        self.until(lambda: text in self.text(), timeout)

    def send(self, number):
        self.began = time.monotonic()
        os.kill(self.process.pid, number)

    def end(self, timeout=LIMIT):
        """Waits for the end of the process."""
        try:
            code = self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running: {self.text()}") from None
        return Ended(code, self.text(), time.monotonic() - self.began)


def _hear_hangups():
    """As in a terminal, also where the tests run under nohup: what it ignores stays ignored."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def train(folder, *arguments, **keys):
    """A training from start to end."""
    with Training(folder, *arguments, **keys) as training:
        return training.end()


def children(pid):
    """Processes that a process has started and that still run."""
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True)
    return [int(line) for line in found.stdout.split()]


def runs(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False
