"""The CPU quota of the process's own cgroup, on trees and, where the machine lets us make a group, on the real one."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from cgroup_trees import GROUP, TREES, V2, planted, stat

from subbyte.runtime import host
from subbyte.runtime.cgroup import cpu_group
from subbyte.runtime.steadiness import Disturbance, Observed, unsteadiness


@pytest.mark.parametrize("name", TREES)
def test_quota_and_throttling_of_the_own_group(tmp_path: Path, name: str) -> None:
    files, quota, throttled = TREES[name]
    group = cpu_group(planted(tmp_path, files))
    assert (group.quota(), group.throttled()) == (quota, throttled)
    everything = len(host.physical_cpus(tmp_path))
    assert host.usable_cores(tmp_path) == max(1, min(everything, int((quota or 999) + 0.5)))


def test_throttling_within_the_window_is_the_first_warning(tmp_path: Path) -> None:
    root = planted(tmp_path, {"proc/self/cgroup": "0::/\n", "proc/self/mountinfo": V2, f"{GROUP}/cpu.stat": stat(40)})
    watch = Disturbance(root)
    (root / GROUP / "cpu.stat").write_text(stat(52))
    observed = watch.stop()
    assert observed.throttled == 12
    assert Disturbance(root).stop().throttled == 0
    uneven = np.where(np.arange(99) % 9 == 0, 9.0, 1.0)
    said = unsteadiness(uneven, Observed(500.0, None, observed.throttled))
    assert said[0].startswith("the CPU quota of this process's cgroup ran out in 12 of its periods")
    assert "standard deviation over mean): the CPU quota stopped the process" in said[1]
    assert not any("other programs" in text for text in said)
    assert "other programs took the core 500 times" in unsteadiness(uneven, Observed(500.0, None, 0))[0]


@pytest.fixture
def little_cpu() -> Iterator[Path]:
    """A cgroup of this machine below our own that lends a fiftieth of a CPU: less than a loaded machine leaves us."""
    own = cpu_group()
    if not own.folders:
        pytest.skip("this machine tells no cgroup with a cpu controller")
    folder = own.folders[0] / f"subbyte-test-{os.getpid()}"
    try:
        folder.mkdir()
    except OSError as error:
        pytest.skip(f"no cgroup can be made here: {error}")
    try:
        if own.version == 2:
            (folder / "cpu.max").write_text("2000 100000")
        else:
            (folder / "cpu.cfs_period_us").write_text("100000")
            (folder / "cpu.cfs_quota_us").write_text("2000")
        yield folder
    except OSError as error:
        pytest.skip(f"this cgroup takes no quota: {error}")
    finally:
        folder.rmdir()


def test_the_kernel_throttles_and_we_see_it(little_cpu: Path) -> None:
    """A process of its own enters the group, burns 20 ms of CPU time, the quota of ten periods, and sees it."""
    code = f"""
import os, time
from pathlib import Path
from subbyte.runtime.cgroup import cpu_group
from subbyte.runtime.steadiness import Disturbance
(Path({str(little_cpu)!r}) / "cgroup.procs").write_text(str(os.getpid()))
watch = Disturbance()
start = time.process_time()
while time.process_time() - start < 0.02: pass
print(cpu_group().quota(), watch.stop().throttled > 0)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600, check=False)
    assert done.stdout.split() == ["0.02", "True"], done.stderr


def test_a_byte_0_in_the_path_of_a_mount_is_no_group(tmp_path: Path) -> None:
    mount = "31 23 0:28 / /sys/fs\\000cgroup rw - cgroup2 cgroup2 rw\n"
    group = cpu_group(planted(tmp_path, {"proc/self/cgroup": "0::/a\n", "proc/self/mountinfo": mount}))
    assert (group.quota(), group.throttled()) == (None, None)
