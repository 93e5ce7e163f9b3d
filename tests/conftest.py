"""What holds for all tests: no deadlines, features held down, the deep sample of the day, what was not run and why.

pytest --without avx512,amx     as on a CPU without the features that start so
pytest --sample 20784           the sample of another day
"""

from __future__ import annotations

import os
import random
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from this_cpu import hold_down
from this_machine import not_run

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # before any test imports onnxruntime

# A loaded machine is no failure.
settings.register_profile("subbyte", deadline=None)
settings.load_profile("subbyte")

SAMPLE = pytest.StashKey[int]()
CPUINFO = pytest.StashKey[Any]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("subbyte")
    group.addoption("--sample", type=int, metavar="N", help="seed of the deep sample; default: day of the last commit")
    group.addoption("--without", default="", metavar="FEATURES", help="CPU features to hold down, such as avx512,amx")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "sampled(name, entries, count): runs for count of the entries, others each day")
    given = config.getoption("--sample")
    config.stash[SAMPLE] = _day_of_last_commit() if given is None else given
    names = [name for name in config.getoption("--without").split(",") if name]
    if names and not hasattr(config, "workerinput"):  # what xdist starts inherits the environment
        config.stash[CPUINFO] = hold_down(names)


def pytest_unconfigure(config: pytest.Config) -> None:
    if CPUINFO in config.stash:
        config.stash[CPUINFO].close()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    for mark in metafunc.definition.iter_markers("sampled"):
        name, entries, count = mark.args
        chosen = random.Random(metafunc.config.stash[SAMPLE]).sample(range(len(entries)), min(count, len(entries)))
        metafunc.parametrize(name, [entries[index] for index in sorted(chosen)], **mark.kwargs)


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    reports = terminalreporter.stats.get("skipped", [])
    lines = not_run(report.longrepr[2] for report in reports if isinstance(report.longrepr, tuple))
    if lines:
        terminalreporter.section("tests not run: what this machine lacks")
        for line in lines:
            terminalreporter.write_line(line)
    without = config.getoption("--without")
    held = f", --without {without}" if without else ""
    terminalreporter.write_line(f"the deep sample was --sample {config.stash[SAMPLE]}{held}")


@pytest.fixture(scope="session")
def sample(request: pytest.FixtureRequest) -> int:
    """The seed of the deep sample."""
    return request.config.stash[SAMPLE]


def _day_of_last_commit() -> int:
    """Days since 1970; 0 where the tests are no checkout of git."""
    command = ["git", "-C", str(Path(__file__).parent), "log", "-1", "--format=%ct"]
    try:
        return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout) // 86400
    except (OSError, ValueError, subprocess.CalledProcessError):
        return 0
