from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
KEEP = "freed.keep(1 << 29, largest=1 << 25)"
SPENDING = """
import resource
from pipeline import freed

{keep}
def spend():
    blocks = [bytearray(b"x") * (10 << 20) for _ in range(5)]
for _ in range(2):
    spend()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    spend()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="other systems keep what is freed by rules of their own")
def test_freed_memory_does_not_come_again_page_by_page() -> None:
    pages = 5 * 5 * (10 << 20) // 4096
    faults = {}
    for keep in ("", KEEP):
        command = [sys.executable, "-c", SPENDING.format(keep=keep)]
        told = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True, timeout=120)
        faults[keep] = int(told.stdout)
    assert faults[KEEP] < pages / 100
    assert faults[""] > faults[KEEP]
