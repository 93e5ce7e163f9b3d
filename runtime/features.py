"""CPU features, a row each: our name, those of LLVM and /proc/cpuinfo, and the bit that tells whether a CPU has it.

Kernels ask for features by our names, bundles record them, and the runtime compares them with the CPU. Our name is the
one of /proc/cpuinfo without underscores (avx512vnni, not avx512_vnni), unless the row has `cpuinfo`.

To add a feature: a row below, then `make generate`, which writes the same rows to runtime/c/cpu_features.h. How the C
core reads the words of a family is in runtime/c/needs.c.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

from subbyte.errors import RegistrationError

LONGEST_NAME = 15  # characters: `feature` of runtime/c/needs.c has 16 bytes with the zero


class Family(NamedTuple):
    """CPUs that are asked in one way.

    `words` are 32-bit words, in the order of needs.c: CPUID leaves (x86), AT_HWCAP and AT_HWCAP2 of getauxval, and
    RISCV_HWPROBE_KEY_IMA_EXT_0 of riscv_hwprobe. A family without words cannot be asked.
    """

    machines: tuple[str, ...]  # first part of a target triple
    asked_if: str = ""  # the C preprocessor's condition for `words`
    words: tuple[str, ...] = ()


FAMILIES: Mapping[str, Family] = MappingProxyType(
    {
        "x86": Family(
            machines=("x86_64", "i386"),
            asked_if="defined(__x86_64__) || defined(__i386__)",
            words=("LEAF_1_ECX", "LEAF_7_EBX", "LEAF_7_ECX", "LEAF_7_EDX", "LEAF_7_1_EAX", "LEAF_EXTENDED_ECX"),
        ),
        "aarch64": Family(
            machines=("aarch64",),
            asked_if="defined(__aarch64__) && defined(__linux__)",
            words=("HWCAP", "HWCAP2"),
        ),
        "riscv": Family(
            machines=("riscv64", "riscv32"),
            asked_if="defined(__riscv) && defined(__linux__)",
            words=("HWCAP", "HWPROBE_IMA_EXT_0"),
        ),
        "arm-m": Family(machines=("thumbv6m", "thumbv7m", "thumbv7em", "thumbv8m.base", "thumbv8m.main")),
    }
)

# Bits of XCR0: registers that the system must save, else their instructions are illegal.
YMM, ZMM, TILES = 0x6, 0xE6, 0x60000


class Bit(NamedTuple):
    """The bit of a word of the family that is set where the CPU has the feature."""

    word: str
    number: int  # 0 to 31
    saved: int = 0  # x86: bits of XCR0 that must be set, too


@dataclass(frozen=True)
class Feature:
    """A CPU feature, whose names are unique over all families.

    A feature has a `bit` if its family can be asked. Else it has a `macro`, which the C compiler defines for CPUs that
    have the feature: C sources test it, and run everywhere. Raises RegistrationError for a part that is missing or
    wrong.
    """

    name: str
    family: str
    llvm: str
    bit: Bit | None = None
    cpuinfo: str = ""  # the name in /proc/cpuinfo, if it is not ours with underscores
    macro: str = ""

    def __post_init__(self) -> None:
        where = f"CPU feature '{self.name}'"
        for part, value in vars(self).items():
            if not isinstance(value, str if part != "bit" else (Bit, type(None))):
                raise RegistrationError(
                    f"{where}: its {part} is {value!r}, expected {'a Bit' if part == 'bit' else 'str'}"
                )
        if not self.name or self.name != _plain(self.name) or len(self.name) > LONGEST_NAME:
            raise RegistrationError(
                f"{where}: its name has to be 1 to {LONGEST_NAME} lower-case characters without '_', '-', '.' and '+'"
            )
        if self.family not in FAMILIES:
            raise RegistrationError(f"{where} is of family '{self.family}', expected one of {', '.join(FAMILIES)}")
        if not self.llvm:
            raise RegistrationError(f"{where} has no LLVM name: add it (`llc -march=... -mattr=help` lists them)")
        words = FAMILIES[self.family].words
        if not words and (self.bit or not self.macro):
            raise RegistrationError(
                f"{where}: CPUs of family '{self.family}' cannot be asked; give the macro of the C compiler, and no bit"
            )
        if words and (self.bit is None or self.bit.word not in words or self.bit.number not in range(32)):
            raise RegistrationError(
                f"{where}: expected the bit that tells whether a CPU has it, of one of {', '.join(words)}; "
                f"got {self.bit}"
            )

    @property
    def aliases(self) -> frozenset[str]:
        """Its other names, as `canonical` compares them."""
        return frozenset({_plain(self.llvm), _plain(self.cpuinfo or self.name)} - {self.name})


def _plain(name: str) -> str:
    return name.lower().lstrip("+").replace("_", "").replace("-", "").replace(".", "")


_rows: dict[str, Feature] = {}
_aliases: dict[str, str] = {}
FEATURES: Mapping[str, Feature] = MappingProxyType(_rows)


def register_feature(feature: Feature) -> Feature:
    """Make a feature known; raises RegistrationError for one of a known name or alias, and anything but a Feature."""
    if not isinstance(feature, Feature):
        raise RegistrationError(f"register_feature expects a Feature, got {feature!r}")
    aliases = sorted(feature.aliases)
    for name in (feature.name, *aliases):
        if name in _rows or name in _aliases:
            raise RegistrationError(
                f"CPU feature '{feature.name}': '{name}' is a name of feature '{_aliases.get(name, name)}' already"
            )
    _rows[feature.name] = feature
    _aliases.update((alias, feature.name) for alias in aliases)
    return feature


def canonical(name: str) -> str:
    """Our name of a feature, of any of its names: 'avx512_vnni', '+avx512vnni' -> 'avx512vnni'; 'lzcnt' -> 'abm'.

    A name of no feature is returned in lower case, without '_', '-' and '.'.
    """
    plain = _plain(name)
    return _aliases.get(plain, plain)


def features_of(machine: str) -> tuple[Feature, ...]:
    """The features that CPUs of this machine (as in a target triple: x86_64, aarch64, ...) may have."""
    return tuple(row for row in _rows.values() if machine in FAMILIES[row.family].machines)


# ---- rows ----

for _row in (
    Feature("ssse3", "x86", "ssse3", Bit("LEAF_1_ECX", 9)),
    Feature("sse41", "x86", "sse4.1", Bit("LEAF_1_ECX", 19)),
    Feature("sse42", "x86", "sse4.2", Bit("LEAF_1_ECX", 20)),
    Feature("popcnt", "x86", "popcnt", Bit("LEAF_1_ECX", 23)),
    Feature("avx", "x86", "avx", Bit("LEAF_1_ECX", 28, YMM)),
    Feature("f16c", "x86", "f16c", Bit("LEAF_1_ECX", 29, YMM)),
    Feature("avx2", "x86", "avx2", Bit("LEAF_7_EBX", 5, YMM)),
    Feature("fma", "x86", "fma", Bit("LEAF_1_ECX", 12, YMM)),
    Feature("bmi1", "x86", "bmi", Bit("LEAF_7_EBX", 3)),
    Feature("bmi2", "x86", "bmi2", Bit("LEAF_7_EBX", 8)),
    Feature("abm", "x86", "lzcnt", Bit("LEAF_EXTENDED_ECX", 5)),
    Feature("movbe", "x86", "movbe", Bit("LEAF_1_ECX", 22)),
    Feature("avxvnni", "x86", "avxvnni", Bit("LEAF_7_1_EAX", 4, YMM)),
    Feature("avx512f", "x86", "avx512f", Bit("LEAF_7_EBX", 16, ZMM)),
    Feature("avx512cd", "x86", "avx512cd", Bit("LEAF_7_EBX", 28, ZMM)),
    Feature("avx512bw", "x86", "avx512bw", Bit("LEAF_7_EBX", 30, ZMM)),
    Feature("avx512dq", "x86", "avx512dq", Bit("LEAF_7_EBX", 17, ZMM)),
    Feature("avx512vl", "x86", "avx512vl", Bit("LEAF_7_EBX", 31, ZMM)),
    Feature("avx512vnni", "x86", "avx512vnni", Bit("LEAF_7_ECX", 11, ZMM)),
    Feature("avx512vbmi", "x86", "avx512vbmi", Bit("LEAF_7_ECX", 1, ZMM)),
    Feature("avx512vbmi2", "x86", "avx512vbmi2", Bit("LEAF_7_ECX", 6, ZMM)),
    Feature("avx512ifma", "x86", "avx512ifma", Bit("LEAF_7_EBX", 21, ZMM)),
    Feature("avx512bitalg", "x86", "avx512bitalg", Bit("LEAF_7_ECX", 12, ZMM)),
    Feature("avx512vpopcntdq", "x86", "avx512vpopcntdq", Bit("LEAF_7_ECX", 14, ZMM)),
    Feature("amxtile", "x86", "amx-tile", Bit("LEAF_7_EDX", 24, TILES)),
    Feature("amxint8", "x86", "amx-int8", Bit("LEAF_7_EDX", 25, TILES)),
    Feature("gfni", "x86", "gfni", Bit("LEAF_7_ECX", 8)),
    # Bits of asm/hwcap.h
    Feature("neon", "aarch64", "neon", Bit("HWCAP", 1), cpuinfo="asimd"),
    Feature("dotprod", "aarch64", "dotprod", Bit("HWCAP", 20), cpuinfo="asimddp"),
    Feature("i8mm", "aarch64", "i8mm", Bit("HWCAP2", 13)),
    Feature("sve", "aarch64", "sve", Bit("HWCAP", 22)),
    # Armv7E-M: two 16-bit products an instruction
    Feature("dsp", "arm-m", "dsp", macro="__ARM_FEATURE_DSP"),
    # HWCAP: a bit for each letter. The others: asm/hwprobe.h, of Linux 6.4 and later
    *(Feature(letter, "riscv", letter, Bit("HWCAP", ord(letter) - ord("a"))) for letter in "imafdcv"),
    Feature("zba", "riscv", "zba", Bit("HWPROBE_IMA_EXT_0", 3)),
    Feature("zbb", "riscv", "zbb", Bit("HWPROBE_IMA_EXT_0", 4)),
    Feature("zbs", "riscv", "zbs", Bit("HWPROBE_IMA_EXT_0", 5)),
):
    register_feature(_row)

# Those of the tile registers, which a process must ask Linux for.
TILE_FEATURES = frozenset(row.name for row in _rows.values() if row.bit and row.bit.saved == TILES)
