"""Bundles: bytes, zip structure, manifest and members of a right one, changed; what loads gives the right numbers."""

from __future__ import annotations

import hashlib
import io
import json
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from corruption import Rng, changed_json, corrupted, json_bytes, number, pick
from kinds import Fault
from tiny_bundle import build_library, example, reference, tiny_manifest, tiny_members

from subbyte.runtime import load, open_bundle, write_bundle
from subbyte.runtime.archive import NewMember, write_entries


@dataclass(frozen=True)
class State:
    """The right bundle: its bytes, its manifest, its other members; an input and what the model gives for it."""

    data: bytes
    manifest: dict[str, Any]
    members: dict[str, bytes]
    x: np.ndarray
    want: dict[str, np.ndarray]


def prepare(folder: Path) -> State:
    """The bundle of the tiny model."""
    path = write_bundle(folder / "tiny.subbyte", tiny_manifest(), tiny_members(build_library(folder)))
    with open_bundle(path) as bundle:
        members = {name: bundle.read(name) for name in bundle.members if name != "manifest.json"}
        manifest = json.loads(bundle.read("manifest.json"))
    x = example(5)
    return State(path.read_bytes(), manifest, members, x, reference(x))


def case(state: State, rng: Rng, folder: Path) -> str:
    """A spoilt bundle, opened, loaded and run."""
    path = folder / "given"
    way = rng.random()
    if way < 0.3:
        data = corrupted(state.data, rng)
    elif way < 0.5:
        data = _structure(state, rng)
    else:
        data = _content(state, rng)
    path.write_bytes(data)
    with open_bundle(path) as bundle:
        for name, member in bundle.manifest.members.items():
            found = bundle.read(name)
            if hashlib.sha256(found).hexdigest() != member.sha256 or len(found) != member.bytes:
                raise Fault(f"member '{name}' is not what the manifest says")
        right = all(bundle.read(name) == state.members[name] for name in ("library.so", "weights.bin"))
    with load(path, threads=1) as session:
        result = list(session.run({session.inputs[0].name: state.x}).values())
        wanted = [state.want["y"], state.want["count"]]
        if right and not all(np.array_equal(got, want) for got, want in zip(result, wanted, strict=True)):
            raise Fault("the numbers are wrong")
        session.trace(state.x)
        session.check_golden()
    return "read"


# ---- zip structure ----


def _structure(state: State, rng: Rng) -> bytes:
    """A zip written by hand, with headers that lie; members left out, given twice, renamed, in another order."""
    members = [("manifest.json", json.dumps(state.manifest).encode()), *state.members.items()]
    if rng.random() < 0.5:
        members = _rearranged(members, rng)
    file, rows = io.BytesIO(), []
    for name, data in members:
        lies = rng.random() < 0.15
        called = name.encode("utf-8", "surrogateescape")
        padding = -(file.tell() + 30 + len(called) + 4) % 4096 if name in ("library.so", "weights.bin") else 0
        extra = struct.pack("<HH", 0xD935, padding) + bytes(padding) if padding or rng.random() < 0.05 else b""
        fields = [20, 0, 0, 0, 33, zlib.crc32(data), len(data), len(data), len(called), len(extra)]
        local = _lied(fields, rng) if lies and rng.random() < 0.6 else fields
        at = file.tell()
        file.write(struct.pack("<4s5H3I2H", b"PK\x03\x04", *local) + called + extra + data)
        row = [(3 << 8) | 20, *fields[:9], 0, 0, 0, 0, 0o100644 << 16, at]
        rows.append(struct.pack("<4s6H3I5H2I", b"PK\x01\x02", *(_lied(row, rng) if lies else row)) + called)
    at, directory = file.tell(), b"".join(rows)
    end = [0, 0, len(rows), len(rows), len(directory), at, 0]
    end = _lied(end, rng) if rng.random() < 0.1 else end
    return file.getvalue() + directory + struct.pack("<4s4H2IH", b"PK\x05\x06", *end)


def _lied(fields: list[int], rng: Rng) -> list[int]:
    """One field with another number; what is too large for the field keeps its low bits."""
    made = list(fields)
    widths = {10: (*[16] * 5, *[32] * 3, *[16] * 2), 16: (*[16] * 6, *[32] * 3, *[16] * 5, *[32] * 2)}
    bits = widths.get(len(made), (16, 16, 16, 16, 32, 32, 16))
    at = int(rng.integers(len(made)))
    made[at] = int(pick(rng, (number(rng), made[at] + 1, made[at] ^ 8, made[at] ^ 1))) % (1 << bits[at])
    return made


def _rearranged(members: list[tuple[str, bytes]], rng: Rng) -> list[tuple[str, bytes]]:
    made = list(members)
    at = int(rng.integers(len(made)))
    name, data = made[at]
    way = int(rng.integers(5))
    if way == 0:
        del made[at]
    elif way == 1:
        made.append(made[at])
    elif way == 2:
        names = ("../x", "/x", "a/b/c", "A" * 300, "golden", ".", "manifest.JSON", "x\0y", "Report.json", "\udcff")
        made[at] = (pick(rng, names), data)
    elif way == 3:
        made = [made[int(i)] for i in rng.permutation(len(made))]
    else:
        made[at] = (name, corrupted(data, rng))
    return made


# ---- content, with hashes that hold ----


def _content(state: State, rng: Rng) -> bytes:
    """Changed members or a changed manifest in a right zip, so that what stands behind the hashes is read."""
    manifest, members = dict(state.manifest), dict(state.members)
    way = rng.random()
    if way < 0.3:
        name = pick(rng, [name for name in members if name != "library.so"])
        members[name] = corrupted(members[name], rng)
    elif way < 0.35:
        members["library.so"] = pick(rng, (b"", rng.bytes(100), b"\x7fELF" + bytes(60), members["library.so"][:64]))
    rows = {name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in members.items()}
    manifest["members"] = rows
    text = json.dumps(manifest).encode() if way < 0.3 else json_bytes(changed_json(manifest, rng), rng)
    file = io.BytesIO()
    write_entries(file, [_payload(name, data) for name, data in (("manifest.json", text), *members.items())])
    return file.getvalue()


def _payload(name: str, data: bytes) -> NewMember:
    return NewMember(name, len(data), zlib.crc32(data), lambda: [data], aligned=name in ("library.so", "weights.bin"))
