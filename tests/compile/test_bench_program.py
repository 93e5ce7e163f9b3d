"""The static bench program prints the JSON of `subbyte bench`: the same keys, the same values where they must agree."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hand_plan import Example
from state_models import integer_cell
from unpacked import unpacked

from subbyte.runtime import bench
from subbyte.runtime.bundle import open_bundle
from subbyte.runtime.golden import ABSOLUTE_TOLERANCE, RELATIVE_TOLERANCE
from subbyte.runtime.host import physical_cpus
from subbyte.tvm_kernels.compiler import bundle_plan, compile
from subbyte.tvm_kernels.emit import Golden
from subbyte.tvm_kernels.machines import get_target

Json = dict[str, Any]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle whose operators have all that a manifest can say of them, and its bench program beside it."""
    example = Example()
    first, second, scale = example.plan.calls
    calls = (
        dataclasses.replace(
            first,
            **{"activation": "uint8", "weights": "ternary", "macs": np.int64(7 * 24 * 10), "weight_bytes": 60},
            **{"input_bytes": 168, "output_bytes": 280, "bits_per_weight": 2.0},
        ),
        dataclasses.replace(second, weights="pow2_4", activation="uint8", macs=1 << 40),
        dataclasses.replace(scale, fallback='no kernel for "this\\"\n\u00e9', output_bytes=280),
    )
    plan = dataclasses.replace(example.plan, calls=calls)
    nearly = example.outputs[0].copy()
    nearly[2, 3] = np.nextafter(nearly[2, 3], np.float32(np.inf))
    golden = Golden(example.inputs, (nearly, example.outputs[1]), RELATIVE_TOLERANCE, ABSOLUTE_TOLERANCE)
    made: Path = tmp_path_factory.mktemp("bench")
    bundle_plan(plan, get_target("host"), made / "model.subbyte", golden)
    with open_bundle(made / "model.subbyte") as opened:
        unpacked({name: opened.read(name) for name in opened.members}, made)
    return made


@pytest.fixture(scope="module")
def ours(folder: Path) -> Json:
    command = [folder / "bench", "--iterations", "40", "--json"]
    done = subprocess.run(command, capture_output=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    found: Json = json.loads(done.stdout)
    return found


@pytest.fixture(scope="module")
def theirs(folder: Path) -> Json:
    found: Json = json.loads(json.dumps(bench(folder / "model.subbyte", iterations=40).to_json()))
    return found


def differences(c: Any, python: Any, where: str = "") -> list[str]:
    """Where keys, their order, or kinds of value differ; None stands for any kind."""
    if c is None or python is None:
        return []
    if isinstance(c, dict) and isinstance(python, dict):
        if list(c) != list(python):
            return [f"{where}: {list(c)} and {list(python)}"]
        return [found for key in c for found in differences(c[key], python[key], f"{where}.{key}")]
    if isinstance(c, list) and isinstance(python, list):
        return [found for one, other in zip(c, python, strict=False) for found in differences(one, other, f"{where}[]")]
    return [] if type(c) is type(python) else [f"{where}: {c!r} and {python!r}"]


def test_the_keys_are_the_same_all_the_way_down(ours: Json, theirs: Json) -> None:
    assert differences(ours, theirs) == []
    assert len(ours["operators"]) == len(theirs["operators"]) == 3


def test_what_must_agree_agrees(ours: Json, theirs: Json) -> None:
    same = ("name", "target", "threads", "pinned_cpus", "iterations", "warmup", "energy_modelled")
    same += ("golden_ok", "golden_exact", "golden_differing", "golden_moved", "golden_max_error")
    assert {key: ours[key] for key in same} == {key: theirs[key] for key in same}
    assert ours["golden_differing"] == 1
    assert ours["golden_exact"] is False
    assert ours["golden_max_error"] > 0
    known = ("name", "kernel", "activation", "weights", "macs", "fallback")
    for one, other in zip(ours["operators"], theirs["operators"], strict=True):
        assert {key: one[key] for key in known} == {key: other[key] for key in known}
    changes = {"mhz", "load_1min", "memory_available_bytes", "temperature_c", "python", "numpy"}
    for key in set(theirs["machine"]) - changes:
        assert ours["machine"][key] == theirs["machine"][key], key


def test_what_the_program_cannot_know_is_null(ours: Json, folder: Path) -> None:
    assert ours["bundle_bytes"] is None
    assert (ours["machine"]["python"], ours["machine"]["numpy"]) == (None, None)
    assert (ours["cold_start"]["python_ms"], ours["cold_start"]["import_ms"]) == (None, None)
    assert ours["path"] == str((folder / "bench").resolve())
    assert (ours["energy_measured"] is None) == bool(ours["energy_measured_missing"])


def test_figures_fit_each_other(ours: Json) -> None:
    latency = ours["latency_ms"]
    assert 0 < latency["min"] <= latency["p50"] <= latency["p90"] <= latency["p99"]
    assert ours["throughput_per_s"] == pytest.approx(1e3 / latency["mean"])
    rows = ours["operators"]
    assert sum(row["share"] for row in rows) == pytest.approx(1.0)
    assert all(0 < row["ns"] <= row["ns_median"] for row in rows)
    assert rows[0]["gmac_per_s"] == pytest.approx(1680 / rows[0]["ns"])
    assert rows[2]["gmac_per_s"] is None
    cold = ours["cold_start"]
    assert 0 < cold["load_ms"] < cold["total_ms"]
    assert cold["runs"] == 3
    assert 0 < cold["resident_bytes"] <= cold["peak_bytes"]


def test_the_program_stays_on_as_many_cores_as_it_has_threads(folder: Path) -> None:
    options = ["--iterations", "5", "--threads", "2", "--json"]
    done = subprocess.run([folder / "bench", *options], capture_output=True, timeout=600, check=True)
    cpus = physical_cpus()
    assert json.loads(done.stdout)["pinned_cpus"] == (cpus[-2:] if len(cpus) > 1 else [])
    on_one = f"import os, sys; os.sched_setaffinity(0, {{{cpus[0]}}}); os.execv(sys.argv[1], sys.argv[1:])"
    command = [sys.executable, "-c", on_one, str(folder / "bench"), *options]
    alone = json.loads(subprocess.run(command, capture_output=True, timeout=600, check=True).stdout)
    assert alone["pinned_cpus"] == []
    assert "2 threads share 1 cores: use fewer threads" in alone["warnings"]


def run(folder: Path, *options: str) -> tuple[int, str, str]:
    done = subprocess.run([folder / "bench", *options], capture_output=True, text=True, timeout=600, check=False)
    return done.returncode, done.stdout, done.stderr


def test_it_reads_the_bundle_itself_too(folder: Path, tmp_path: Path) -> None:
    program = tmp_path / "bench"
    program.write_bytes((folder / "bench").read_bytes())
    program.chmod(0o755)
    bundle = folder / "model.subbyte"
    status, text, errors = run(tmp_path, str(bundle), "--iterations", "3", "--json")
    assert status == 0, errors
    found = json.loads(text)
    assert (found["golden_ok"], found["golden_differing"], found["bundle_bytes"]) == (True, 1, bundle.stat().st_size)
    assert found["cold_start"]["runs"] == 3
    assert json.loads(run(tmp_path, str(folder), "--iterations", "3", "--json")[1])["golden_differing"] == 1
    status, text, errors = run(tmp_path, "--iterations", "3")
    assert (status, text) == (1, "")
    assert f"cannot open: {tmp_path}/weights.bin: No such file" in errors
    assert "unpack all of it here" in errors


def test_weights_of_another_model_are_refused(folder: Path, tmp_path: Path) -> None:
    with open_bundle(folder / "model.subbyte") as opened:
        members = {name: opened.read(name) for name in opened.members}
    weights = members["weights.bin"]
    for other, reason in ((weights[:-64], "cut short, or of another model"), (weights[::-1], "wrong SHA-256")):
        unpacked({**members, "weights.bin": other}, tmp_path)
        status, text, errors = run(tmp_path, "--iterations", "3")
        assert (status, text) == (1, "")
        assert reason in errors


@pytest.fixture(scope="module")
def stateful(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Members of the bundle of a cell with state, whose golden data are of four runs."""
    path = tmp_path_factory.mktemp("state") / "cell.subbyte"
    compile(integer_cell(), path, state=["h=h_next"])
    with open_bundle(path) as opened:
        assert opened.manifest.golden_runs == 4
        return {name: opened.read(name) for name in opened.members}


def test_the_golden_runs_of_a_model_with_state_are_all_compared(stateful: dict[str, bytes], tmp_path: Path) -> None:
    unpacked(stateful, tmp_path)
    status, text, errors = run(tmp_path, "--iterations", "3", "--json", "--dump", str(tmp_path))
    assert status == 0, errors
    found = json.loads(text)
    assert (found["golden_ok"], found["golden_exact"], found["golden_differing"]) == (True, True, 0)
    golden = np.load(io.BytesIO(stateful["golden/output_0.npy"]))
    np.testing.assert_array_equal(np.fromfile(tmp_path / "output_0.bin", golden.dtype).reshape(golden.shape), golden)


@pytest.mark.parametrize(("member", "at"), [("output_0", (0, 0, 5)), ("output_0", (2, 0, 5)), ("state_0", (0, 5))])
def test_one_wrong_element_of_any_golden_run_or_state_is_found(
    stateful: dict[str, bytes], member: str, at: tuple[int, ...], tmp_path: Path
) -> None:
    """As of a model that goes wrong in its third run: the program has the hash of the changed file."""
    name = f"golden/{member}.npy"
    values, changed = np.load(io.BytesIO(stateful[name])), io.BytesIO()
    values[at] ^= 64
    np.save(changed, values)
    old, new = (hashlib.sha256(data).hexdigest().encode() for data in (stateful[name], changed.getvalue()))
    assert stateful["bench"].count(old) == 1
    unpacked({**stateful, name: changed.getvalue(), "bench": stateful["bench"].replace(old, new)}, tmp_path)
    status, text, errors = run(tmp_path, "--iterations", "3", "--json")
    assert status == 1, errors
    found = json.loads(text)
    assert (found["golden_ok"], found["golden_differing"]) == (False, 1)
    assert "the outputs are not the golden ones" in found["warnings"][0]


def test_no_weights_are_in_the_program(folder: Path) -> None:
    with open_bundle(folder / "model.subbyte") as opened:
        program = opened.read("bench")
        assert opened.read("weights.bin")[:32] not in program
        for name in ("golden/input_0.npy", "golden/output_0.npy"):
            assert opened.read(name)[-32:] not in program


def test_help_says_every_option(folder: Path) -> None:
    status, text, errors = run(folder, "--help")
    assert (status, errors) == (0, "")
    for option in ("--iterations", "--duration", "--warmup", "--threads", "--json", "--dump", "--help"):
        assert f"\n  {option} " in text


@pytest.mark.parametrize(
    "options",
    [
        ("--speed", "9"),
        ("model.subbyte", "model.subbyte"),
        ("--iterations",),
        ("--iterations", "2.5"),
        ("--iterations", "0"),
        ("--threads", "257"),
        ("--duration", "nan"),
        ("--duration", ""),
        ("--duration", "0x1"),
        ("--iterations", "1e2"),
        ("--warmup", " 5"),
        ("--dump",),
    ],
)
def test_wrong_options_exit_with_2_and_show_the_usage(folder: Path, options: tuple[str, ...]) -> None:
    status, text, errors = run(folder, *options)
    assert (status, text) == (2, "")
    assert errors.startswith("error: ")
    assert "usage: bench " in errors


def test_a_folder_that_is_not_there_is_a_failure(folder: Path) -> None:
    status, _, errors = run(folder, "--iterations", "1", "--dump", str(folder / "none"))
    assert status == 1
    assert "cannot write" in errors


def test_the_table_shows_what_the_json_does(folder: Path) -> None:
    status, text, _ = run(folder, "--iterations", "9")
    assert status == 0
    for said in ("9 runs after 20", "within tolerance", "/scale  scale-rows", "cold start: ", "energy, measured: none"):
        assert said in text
