"""The CPU quota of this process's own cgroup: cgroup v1 and v2, the group and all above it.

runtime/c/cgroup.c reads it by the same rules, for figures of the C core. The number of a session's threads is chosen
here, where a library may be older than that code, and for `doctor`, without any; tests compare the two.

/proc/self/cgroup names the group, /proc/self/mountinfo where its hierarchy is mounted; a container may see a part of it
alone. `root` is injectable, for tests.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from subbyte.runtime.sysfs import integer, text_of


@dataclass(frozen=True)
class CpuGroup:
    """The cgroup that limits the CPU time of this process: its folder, then its ancestors; () if unknown."""

    folders: tuple[Path, ...]
    version: int  # of cgroups: 1 or 2

    def quota(self) -> float | None:
        """The smallest quota, in CPUs; None without a quota."""
        quotas = [_quota(folder, self.version) for folder in self.folders]
        return min((quota for quota in quotas if quota is not None), default=None)


def cpu_group(root: Path = Path("/")) -> CpuGroup:
    """The cgroup of this process with the cpu controller; without folders where the system does not tell."""
    paths: dict[int, str] = {}  # by version
    for line in (text_of(root / "proc/self/cgroup") or "").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if "cpu" in controllers.split(","):
            paths[1] = path
        elif number == "0" and not controllers:
            paths[2] = path
    version = min(paths, default=2)  # in a mixture the controller is in one hierarchy: v1's, where it is named there
    for mount in (text_of(root / "proc/self/mountinfo") or "").splitlines():
        before, _, after = mount.partition(" - ")
        fields, kind = before.split(" "), after.split(" ")
        if len(fields) < 5 or len(kind) < 3 or version not in paths:
            continue
        if kind[0] == ("cgroup2" if version == 2 else "cgroup") and (version == 2 or "cpu" in kind[2].split(",")):
            return CpuGroup(_folders(root, _plain(fields[3]), _plain(fields[4]), paths[version]), version)
    return CpuGroup((), version)


def _folders(root: Path, shown: str, mount: str, path: str) -> tuple[Path, ...]:
    """From the group at `path` to the top of what is mounted: the part `shown` of the hierarchy, at `mount`."""
    top, group = PurePosixPath(shown), PurePosixPath(path)
    inside = group.relative_to(top).parts if group.is_relative_to(top) and ".." not in group.parts else ()
    base = root / mount.lstrip("/")
    return tuple(base.joinpath(*inside[:depth]) for depth in range(len(inside), -1, -1))


def _plain(path: str) -> str:
    """mountinfo writes a space as \\040."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), path)


def _quota(folder: Path, version: int) -> float | None:
    if version == 2:
        lent, _, period = (text_of(folder / "cpu.max") or "").partition(" ")
    else:
        lent, period = (text_of(folder / f"cpu.cfs_{name}_us") or "" for name in ("quota", "period"))
    quota, whole = integer(lent), integer(period)  # "max", or -1: no quota
    return quota / whole if quota is not None and whole is not None and quota > 0 and whole > 0 else None
