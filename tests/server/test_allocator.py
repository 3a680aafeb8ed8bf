"""Memory of large images is given back, whichever thread had it."""

from __future__ import annotations

import subprocess
import sys

#: Prints by how many bytes resident memory has grown after threads had an image of 20 MB each.
SCRIPT = """
import sys, threading
from server import allocator

def resident():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmRSS")) * 1024

def work(barrier):
    for _ in range(3):
        image = bytes(20_000_000)
        barrier.wait()  # all have one at the same time
        text = image[:-1]
        del image, text
    small = [bytes(1000) for _ in range(100)]  # lies above what was freed
    barrier.wait()
    barrier.wait()  # nobody ends before it was looked

assert allocator.tune()
before = resident()
barrier = threading.Barrier(9)
threads = [threading.Thread(target=work, args=(barrier,)) for _ in range(8)]
for thread in threads:
    thread.start()
for _ in range(4):
    barrier.wait()
print(resident() - before)
barrier.wait()
"""


def test_a_thread_keeps_nothing_of_the_large_blocks_that_it_had() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True
    )

    assert int(done.stdout) < 10_000_000  # 41 MB if the allocator is left alone
