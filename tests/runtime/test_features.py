"""The register of CPU features: names of one feature, rows that are refused, what the C core and LLVM know of it."""

from __future__ import annotations

import ast
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from this_machine import needs, needs_x86_64

from subbyte.errors import RegistrationError
from subbyte.runtime import features
from subbyte.runtime.features import (
    FAMILIES,
    FEATURES,
    TILE_FEATURES,
    Bit,
    Feature,
    canonical,
    features_of,
    register_feature,
)

CORE = Path(features.__file__).parent / "c"
AES = Feature("aes", "x86", "aes", Bit("LEAF_1_ECX", 25))


@pytest.fixture
def register() -> Iterator[None]:
    """Leaves the register as it was."""
    rows, aliases = dict(features._rows), dict(features._aliases)
    yield
    for kept, now in ((rows, features._rows), (aliases, features._aliases)):
        now.clear()  # type: ignore[attr-defined]
        now.update(kept)  # type: ignore[attr-defined]


def test_every_name_of_a_feature_is_the_same_feature() -> None:
    for row in FEATURES.values():
        for name in (row.name, row.llvm, row.cpuinfo or row.name, f"+{row.llvm}", row.name.upper(), *row.aliases):
            assert canonical(name) == row.name
    assert [canonical(name) for name in ("avx512_vnni", "sse4.1", "bmi", "lzcnt", "asimddp", "amx-tile")] == [
        "avx512vnni",
        "sse41",
        "bmi1",
        "abm",
        "dotprod",
        "amxtile",
    ]
    assert canonical("Un_heard-of") == "unheardof"


def test_every_name_in_cpuinfo_is_one_of_linux() -> None:
    """Linux's names for x86, from its source (arch/x86/include/asm/cpufeatures.h), as far as we name them."""
    linux = (
        "ssse3 sse4_1 sse4_2 popcnt avx f16c avx2 fma bmi1 bmi2 abm movbe avx_vnni avx512f avx512cd avx512bw avx512dq"
    )
    linux += " avx512vl avx512_vnni avx512vbmi avx512_vbmi2 avx512ifma avx512_bitalg avx512_vpopcntdq amx_tile amx_int8"
    assert {canonical(name) for name in f"{linux} gfni".split()} == {row.name for row in features_of("x86_64")}


def test_tile_features_are_those_whose_registers_linux_must_permit() -> None:
    assert {"amxtile", "amxint8"} == TILE_FEATURES


def test_llvm_knows_every_feature() -> None:
    import tvm

    triples = {"x86": "x86_64-linux-gnu", "aarch64": "aarch64-linux-gnu", "riscv": "riscv64-linux-gnu"}
    triples["arm-m"] = "thumbv7em-none-eabihf"
    assert triples.keys() == FAMILIES.keys()
    enabled = tvm.get_global_func("target.llvm_get_cpu_features")
    for row in FEATURES.values():
        target = {"kind": "llvm", "mtriple": triples[row.family], "mattr": [f"+{row.llvm}"]}
        assert row.llvm in enabled(tvm.target.Target(target)), row


def test_a_family_that_can_be_asked_is_asked_about_every_feature() -> None:
    for row in FEATURES.values():
        assert (row.bit is not None) == bool(FAMILIES[row.family].words)
    bits = [(row.family, row.bit.word, row.bit.number) for row in FEATURES.values() if row.bit]
    assert len(set(bits)) == len(bits)
    assert set("imafdcv") <= {row.name for row in features_of("riscv64")}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"llvm": ""}, "'aes' has no LLVM name"),
        ({"bit": None}, r"'aes': expected the bit .* LEAF_1_ECX, .*; got None"),
        ({"bit": Bit("HWCAP", 3)}, "got Bit.word='HWCAP'"),
        ({"bit": Bit("LEAF_1_ECX", 32)}, "number=32"),
        ({"family": "x87"}, "family 'x87', expected one of x86, aarch64"),
        ({"family": "arm-m"}, "'arm-m' cannot be asked; give the macro"),
        ({"family": "arm-m", "bit": None}, "'arm-m' cannot be asked; give the macro"),
        ({"bit": Bit("LEAF_1_ECX", "25")}, "number='25'"),
        ({"bit": 25}, "its bit is 25, expected a Bit"),
        ({"llvm": None}, "its llvm is None, expected str"),
        ({"name": ""}, "1 to 15 lower-case"),
        ({"name": "avx512_vnni"}, "without '_'"),
        ({"name": "a" * 16}, "1 to 15 lower-case"),
    ],
)
def test_an_incomplete_feature_is_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(RegistrationError, match=message):
        replace(AES, **change)


@pytest.mark.usefixtures("register")
def test_two_features_with_one_name_are_refused() -> None:
    assert register_feature(AES) is FEATURES["aes"]
    with pytest.raises(RegistrationError, match="'aes': 'aes' is a name of feature 'aes' already"):
        register_feature(AES)
    with pytest.raises(RegistrationError, match="expects a Feature, got 'aes'"):
        register_feature("aes")  # type: ignore[arg-type]
    for taken in (
        replace(AES, name="vaes", llvm="aes"),
        replace(AES, name="bmi"),
        replace(AES, name="x", cpuinfo="abm"),
    ):
        with pytest.raises(RegistrationError, match=r"is a name of feature '(aes|bmi1|abm)' already"):
            register_feature(taken)
        assert taken.name not in FEATURES


def test_the_register_needs_no_other_module_of_ours_but_the_errors() -> None:
    tree = ast.parse(Path(features.__file__).read_text())
    imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.Import)]
    standard = {"__future__", "collections.abc", "dataclasses", "types", "typing"}
    assert imported == standard | {"subbyte.errors"}


@needs(Path("/proc/cpuinfo").exists(), "/proc/cpuinfo")
@needs_x86_64
def test_the_c_core_asks_the_cpu_what_cpuinfo_says(tmp_path: Path) -> None:
    from subbyte.runtime.host import cpu_features

    names = " ".join(sorted(FEATURES))
    (tmp_path / "ask.c").write_text(
        f"""#include <stdio.h>
#include "subbyte.h"
int main(void) {{
  static const subbyte_model model = {{.abi = SUBBYTE_ABI, .features = "{names} unheard-of"}};
  char names[1024];
  subbyte_missing_features(&model, names, sizeof names);
  puts(names);
  return 0;
}}
"""
    )
    command = ["gcc", "-std=c99", f"-I{CORE}", "ask.c", str(CORE / "needs.c"), "-o", "ask"]
    subprocess.run(command, cwd=tmp_path, check=True)
    missing = subprocess.run([tmp_path / "ask"], capture_output=True, text=True, check=True).stdout.split()
    has = cpu_features(Path("/proc/cpuinfo"))
    tiles = {"amxtile", "amxint8"}  # the CPU has them, the system may not save them
    assert set(missing) - tiles == (FEATURES.keys() - has | {"unheard-of"}) - tiles
