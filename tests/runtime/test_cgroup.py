"""The CPU quota of the process's own cgroup, on trees and, where the machine lets us make a group, on the real one."""

from __future__ import annotations

from pathlib import Path

import pytest
from cgroup_trees import TREES, planted

from subbyte.runtime import host
from subbyte.runtime.cgroup import cpu_group


@pytest.mark.parametrize("name", TREES)
def test_quota_of_the_own_group(tmp_path: Path, name: str) -> None:
    files, quota, _ = TREES[name]
    group = cpu_group(planted(tmp_path, files))
    assert group.quota() == quota
    everything = len(host.physical_cpus(tmp_path))
    assert host.usable_cores(tmp_path) == max(1, min(everything, int((quota or 999) + 0.5)))


def test_a_byte_0_in_the_path_of_a_mount_is_no_group(tmp_path: Path) -> None:
    mount = "31 23 0:28 / /sys/fs\\000cgroup rw - cgroup2 cgroup2 rw\n"
    group = cpu_group(planted(tmp_path, {"proc/self/cgroup": "0::/a\n", "proc/self/mountinfo": mount}))
    assert group.quota() is None
