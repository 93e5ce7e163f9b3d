"""Trees of /proc and /sys that lend a process CPU time: name -> (files, CPUs lent, periods throttled)."""

from __future__ import annotations

from pathlib import Path

V2 = "31 23 0:28 / /sys/fs/cgroup rw,relatime shared:4 - cgroup2 cgroup2 rw\n"
V1 = (
    "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755\n"
    "33 31 0:30 / /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset\n"
    "32 31 0:29 {} /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct\n"
    "41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"
)
GROUP = "sys/fs/cgroup"
CPU = "sys/fs/cgroup/cpu,cpuacct"


def stat(throttled: int) -> str:
    return f"nr_periods 90\nnr_throttled {throttled}\nthrottled_usec 7\n"


TREES: dict[str, tuple[dict[str, str], float | None, int | None]] = {
    "its own group, which is not the top": (
        {
            "proc/self/cgroup": "0::/user.slice/job.scope\n",
            "proc/self/mountinfo": V2,
            f"{GROUP}/cpu.max": "100000 100000",  # the kernel has none there: nobody's
            f"{GROUP}/user.slice/cpu.max": "max 100000\n",
            f"{GROUP}/user.slice/cpu.stat": stat(2),
            f"{GROUP}/user.slice/job.scope/cpu.max": "50000 100000\n",
            f"{GROUP}/user.slice/job.scope/cpu.stat": stat(5),
            f"{GROUP}/other/cpu.max": "1000 100000\n",
        },
        0.5,
        7,
    ),
    "a tighter quota above": (
        {
            "proc/self/cgroup": "0::/a/b\n",
            "proc/self/mountinfo": V2,
            f"{GROUP}/a/cpu.max": "150000 100000\n",
            f"{GROUP}/a/b/cpu.max": "900000 100000\n",
            f"{GROUP}/a/b/cpu.stat": stat(0),
        },
        1.5,
        0,
    ),
    "a container with its own namespace": (
        {"proc/self/cgroup": "0::/\n", "proc/self/mountinfo": V2, f"{GROUP}/cpu.max": "250000 100000\n"},
        2.5,
        None,
    ),
    "version 1, a container that sees a part": (
        {
            "proc/self/cgroup": "9:name=systemd:/x\n5:cpuacct,cpu:/docker/abc\n3:cpuset:/\n0::/\n",
            "proc/self/mountinfo": V1.format("/docker/abc"),
            f"{CPU}/cpu.cfs_quota_us": "200000\n",
            f"{CPU}/cpu.cfs_period_us": "100000\n",
            f"{CPU}/cpu.stat": stat(3),
            f"{GROUP}/unified/cpu.max": "1 100000\n",
        },
        2.0,
        3,
    ),
    "version 1, a group below the top": (
        {
            "proc/self/cgroup": "5:cpu,cpuacct:/jobs/7\n0::/\n",
            "proc/self/mountinfo": V1.format("/"),
            f"{CPU}/cpu.cfs_quota_us": "-1\n",
            f"{CPU}/cpu.cfs_period_us": "100000\n",
            f"{CPU}/jobs/cpu.cfs_quota_us": "-1\n",
            f"{CPU}/jobs/cpu.cfs_period_us": "100000\n",
            f"{CPU}/jobs/7/cpu.cfs_quota_us": "75000\n",
            f"{CPU}/jobs/7/cpu.cfs_period_us": "50000\n",
            f"{CPU}/jobs/7/cpu.stat": stat(11),
        },
        1.5,
        11,
    ),
    "a mount with a space": (
        {
            "proc/self/cgroup": "0::/a\n",
            "proc/self/mountinfo": "31 23 0:28 / /my\\040groups rw - cgroup2 cgroup2 rw\n",
            "my groups/a/cpu.max": "300000 100000",
        },
        3.0,
        None,
    ),
    "numbers that are none": (
        {
            "proc/self/cgroup": "0::/a\n",
            "proc/self/mountinfo": V2,
            f"{GROUP}/a/cpu.max": "1e5 100000",
            f"{GROUP}/a/cpu.stat": "nr_throttled 0x5\n",
            f"{GROUP}/cpu.max": "100000 0",
        },
        None,
        None,
    ),
    "a group outside of what is seen": (
        {"proc/self/cgroup": "0::/../other\n", "proc/self/mountinfo": V2, f"{GROUP}/cpu.max": "max 100000"},
        None,
        None,
    ),
    "nothing told": ({f"{GROUP}/cpu.max": "100000 100000"}, None, None),
}


def planted(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root
