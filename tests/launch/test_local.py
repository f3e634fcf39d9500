"""`launch/local.py`: several processes on one machine."""

import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
SLOW = """
import signal, sys, time
number = int(sys.argv[-1].partition("=")[2])
print("argument", sys.argv[1], flush=True)
if number == 1 and sys.argv[1] == "fail":
    sys.exit(7)
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0 if sys.argv[1] == "stop" else 3))
time.sleep(0 if sys.argv[1] == "fail" else 60)
"""


def test_the_starter(tmp_path):
    """Prefixes, the status of the first failure, and signals that go on to all."""
    (tmp_path / "slow.py").write_text(SLOW)
    command = [sys.executable, "launch/local.py", "3", "--", str(tmp_path / "slow.py"), "fail"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.returncode == 7
    assert sorted(done.stdout.splitlines()) == [f"[{number}] argument fail" for number in range(3)]

    start = [sys.executable, "launch/local.py", "2", "--", str(tmp_path / "slow.py"), "stop"]
    with subprocess.Popen(start, stdout=subprocess.PIPE, text=True, cwd=ROOT) as running:
        assert running.stdout is not None
        assert {running.stdout.readline(), running.stdout.readline()} == {"[0] argument stop\n", "[1] argument stop\n"}
        time.sleep(0.3)  # until the handlers are there
        running.send_signal(signal.SIGTERM)
        assert running.wait(timeout=20) == 0
