"""A model that does not fit its target's board is refused: how many bytes are missing, and which tensors take most."""

from __future__ import annotations

import re
from dataclasses import fields, replace
from pathlib import Path

import pytest

from subbyte.errors import CompileError, RegistrationError
from subbyte.export.exporter import export
from subbyte.models import untrained
from subbyte.tvm_kernels.assembly import assemble
from subbyte.tvm_kernels.compiler import compile
from subbyte.tvm_kernels.emit.board_memory import check_fit, live_tensors, ram_of
from subbyte.tvm_kernels.kernels.code_generator import code_generator
from subbyte.tvm_kernels.lowering import lower_graph
from subbyte.tvm_kernels.machines import Target, all_targets, get_target
from subbyte.tvm_kernels.machines.board import Board, Memory
from subbyte.tvm_kernels.memory import aligned
from subbyte.tvm_kernels.plan import Plan

M4 = get_target("cortex-m4")
BOARDS = [target.name for target in all_targets() if target.board]


def file_of(name: str, folder: Path) -> Path:
    model, examples = untrained(name, "int8")
    export(model, folder / f"{name}.onnx", example=examples, check=False)
    return folder / f"{name}.onnx"


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    with code_generator("c"):
        return assemble(lower_graph(file_of("ds_cnn", tmp_path_factory.mktemp("m")), M4.features), M4.features)


def with_memory(flash: int = 4 << 20, ram: int = 4 << 20) -> Target:
    assert M4.board is not None
    return replace(M4, run_by=replace(M4.board, flash=Memory(0, flash), ram=Memory(0x20000000, ram)))


def numbers(text: str) -> list[int]:
    return [int(number.replace(",", "")) for number in re.findall(r"\d[\d,]*", text)]


def test_a_network_of_eleven_million_weights_does_not_fit_a_microcontroller(tmp_path: Path) -> None:
    with pytest.raises(CompileError, match="does not fit board 'mps2-an386' of target 'cortex-m4'") as refused:
        compile(file_of("resnet18", tmp_path), tmp_path / "m.subbyte", target="cortex-m4")
    assert not (tmp_path / "m.subbyte").exists()
    message = str(refused.value)
    needed, there, missing = numbers(re.search(r"flash: (.*?) missing", message)[1])
    assert there == 4 << 20
    assert missing == needed - there
    assert needed > 11_000_000  # a byte each
    listed = re.search(r"Largest weights: (.*?), and \d+ smaller ones", message)[1]
    sizes = [int(number.replace(",", "")) for number in re.findall(r"' ([\d,]+)", listed)]
    assert len(sizes) == 5
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] >= 512 * 512 * 9  # the last 3x3 convolutions


def test_it_fits_to_the_byte(plan: Plan) -> None:
    need = ram_of(plan, plan.workspace_bytes, M4.board)
    assert need["inputs"] == aligned(plan.inputs[0].nbytes) == 256
    assert need["outputs"] == aligned(plan.outputs[0].nbytes) == 64
    ram = sum(need.values())
    assert ram == plan.arena_bytes + plan.workspace_bytes + 256 + 64 + M4.board.stack
    flash = len(plan.weights)
    check_fit(plan, with_memory(flash, ram))
    with pytest.raises(CompileError, match=rf"flash: {flash:,} bytes needed, .* 1 missing\. Largest"):
        check_fit(plan, with_memory(flash - 1, ram))
    with pytest.raises(CompileError, match=rf"RAM: {ram:,} bytes needed, {ram - 1:,} there, 1 missing: intermediate"):
        check_fit(plan, with_memory(flash, ram - 1))
    check_fit(plan, get_target("cortex-a53"))


def test_it_fits_to_the_byte_as_compiled_and_linked(plan: Plan) -> None:
    workspace = plan.workspace_bytes + 100  # with the scratch of kernels
    linked = sum(ram_of(plan, workspace, M4.board).values()) + 18
    check_fit(plan, with_memory(len(plan.weights) + 12, linked), workspace, linked, len(plan.weights) + 12)
    with pytest.raises(CompileError, match=r"flash: .* 1 missing.* RAM: .* 1 missing: .* variables 18\."):
        check_fit(plan, with_memory(len(plan.weights) + 11, linked - 1), workspace, linked, len(plan.weights) + 12)


def test_the_tensors_that_it_names_are_those_of_the_peak(plan: Plan) -> None:
    """Their bytes are the arena: the plan of this network reaches the lower bound."""
    with pytest.raises(CompileError) as refused:
        check_fit(plan, with_memory(ram=64))
    at, listed = re.search(r"Live at '(.+?)', where most bytes are: (.*)\. Take", str(refused.value)).groups()
    named = {name: int(size.replace(",", "")) for name, size in re.findall(r"'(.+?)' ([\d,]+)", listed)}
    buffers = {buffer.name: buffer for buffer in live_tensors(plan)}
    index = [call.name for call in plan.calls].index(at)
    assert all(buffers[name].nbytes == size for name, size in named.items())
    assert all(buffers[name].first <= index <= buffers[name].last for name in named)
    assert sum(aligned(size) for size in named.values()) == plan.arena_bytes


EMPTY = ("cpus", "features", "link_flags")  # may be


@pytest.mark.parametrize("part", [field.name for field in fields(Board) if field.name not in EMPTY])
@pytest.mark.parametrize("target", BOARDS)
def test_a_board_without_a_part_is_refused(target: str, part: str) -> None:
    board = get_target(target).board
    assert board is not None
    empty = type(getattr(board, part))() if isinstance(getattr(board, part), (str, tuple)) else None
    for value in (None, empty):
        with pytest.raises(RegistrationError, match=f"has no {part}"):
            replace(board, **{part: value})


@pytest.mark.parametrize(
    ("part", "value", "message"),
    [
        ("flash", 5, r"its flash is 5 \(int\), expected Memory"),
        ("runs", ("thumbv7em",), "its runs is .*, expected a tuple of Architecture"),
        ("features", ["dsp"], "its features is .*, expected a frozenset of str"),
        ("arguments", "-M virt", r"its arguments is '-M virt' \(str\), expected a tuple of str"),
        ("instructions_per_tick", True, r"its instructions_per_tick is True \(bool\), expected int"),
        ("instructions_per_tick", 0, "its instructions_per_tick is 0, expected at least 1"),
        ("stack", -4096, "its stack is -4096, expected at least 1"),
    ],
)
def test_a_board_with_a_wrong_part_is_refused(part: str, value: object, message: str) -> None:
    assert M4.board is not None
    with pytest.raises(RegistrationError, match=f"board 'mps2-an386': {message}"):
        replace(M4.board, **{part: value})


def test_a_board_with_a_file_or_memory_missing_is_refused() -> None:
    assert M4.board is not None
    with pytest.raises(RegistrationError, match=r"'mps2-an386' has no board\.h; add it to"):
        replace(M4.board, files="no-such-folder")
    with pytest.raises(RegistrationError, match="memory of a board has 0 bytes from address 0, expected at least 1"):
        Memory(0, 0)
    with pytest.raises(RegistrationError, match="from address -4, expected"):
        Memory(-4, 16)
    with pytest.raises(RegistrationError, match=r"its nbytes is 1024\.0 \(float\), expected int"):
        Memory(0, 1024.0)
    flash = M4.board.flash
    with pytest.raises(RegistrationError, match=r"its flash and its RAM overlap: .* and 16 from 0x3fffff"):
        replace(M4.board, ram=Memory(flash.origin + flash.nbytes - 1, 16))
    replace(M4.board, ram=Memory(flash.origin + flash.nbytes, 16))


@pytest.mark.parametrize("target", BOARDS)
def test_the_linker_script_has_the_memory_of_the_board(target: str) -> None:
    board = get_target(target).board
    assert board is not None
    script = board.sources()["memory.ld"].decode()
    assert f"image_stack_bytes = {board.stack};" in script
    found = re.findall(r"(\w+) \(rwx\) : ORIGIN = (0x\w+), LENGTH = (\d+)", script)
    regions = (("FLASH", board.flash), ("RAM", board.ram))
    assert [(kind, int(origin, 16), int(size)) for kind, origin, size in found] == [
        (kind, memory.origin, memory.nbytes) for kind, memory in regions
    ]
