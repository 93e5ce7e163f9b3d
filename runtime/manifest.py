"""`manifest.json` as typed data; every field is checked here before anything else looks at it (docs/bundle.md).

Keys that this version does not know are ignored, so that a later compiler may add some; a change of meaning raises
SCHEMA.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeVar

from subbyte.errors import BundleError
from subbyte.runtime.program_form import FORMS, ProgramForm

SCHEMA = 1
MAX_MANIFEST_BYTES = 16 << 20
MAX_TENSORS = 256  # inputs, or outputs
MAX_OPERATORS = 100_000
MAX_RANK = 8
MAX_TEXT = 4096  # characters of a name
MAX_PLACE = (1 << 32) - 1  # offsets are uint32 in the plan
MAX_TENSOR_BYTES = 2 << 30
MAX_RUNS = 1024  # of the golden run of a model with state
STATE_ALIGNMENT, STATE_WORD = 64, 4  # of each value, and the bytes after the last one: runtime/c/state.c

MODEL_DTYPES = {  # of inputs and outputs: bytes each, in the order of runtime/c/subbyte.h
    **{"float32": 4, "uint8": 1, "int8": 1, "int32": 4, "int64": 8},
    **{"float16": 2, "float64": 8},
}
DTYPES = {
    **MODEL_DTYPES,
    **{"bool": 1, "uint16": 2, "int16": 2, "uint32": 4, "uint64": 8},
}
STORAGES = ("float", "codes", "bits")
LAYOUTS = ("as-is", "NHWC")
# The names alone, of which plan.SPACES of the compiler says more: a device has no compiler. A test compares them.
SPACES = ("arena", "weights", "input", "output", "workspace", "state")

_SHA256 = re.compile(r"[0-9a-f]{64}", re.ASCII)
_GLIBC = re.compile(r"\d{1,3}\.\d{1,3}", re.ASCII)
_REBUILD = "Build the bundle again with `subbyte compile`, or update subbyte."

T = TypeVar("T")


@dataclass(frozen=True)
class TensorInfo:
    """A model input or output."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * MODEL_DTYPES[self.dtype]


@dataclass(frozen=True)
class StateInfo(TensorInfo):
    """A value that lives between runs, named after an input of the ONNX file."""

    output: str  # of the file: the value after a run


@dataclass(frozen=True)
class OperatorOutput:
    """A result that can be traced: its ONNX value, its storage, and its offset while the model runs."""

    tensor: str
    storage: str  # of STORAGES
    dtype: str
    zero_point: int
    shape: tuple[int, ...]
    layout: str  # of LAYOUTS; NHWC: the ONNX value is NCHW
    channels: int
    space: str  # of SPACES
    offset: int
    bytes: int


@dataclass(frozen=True)
class OperatorFacts:
    """What the plan, the compile report and the manifest all say of one operator."""

    name: str  # of the ONNX node
    kind: str  # the operator's, or "relax" for what TVM legalised
    kernel: str
    activation: str = "float32"
    weights: str = "-"
    bits_per_weight: float = 32.0
    macs: int = 0
    per_mac: Mapping[str, float] | None = None  # operations of one multiply-accumulate; None: of the formats
    weight_bytes: int = 0
    input_bytes: int = 0
    output_bytes: int = 0
    fallback: str | None = None  # why it runs in float although the file asks for low bit
    per_element: Mapping[str, float] | None = None  # operations of one output element; None: ELEMENTWISE


class Result(Protocol):
    """What is counted of one result of an operator."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def storage(self) -> str: ...
    @property
    def channels(self) -> int: ...


@dataclass(frozen=True, kw_only=True)
class OperatorCall(OperatorFacts):
    """An operator of a plan or a bundle with its results."""

    outputs: tuple[Result, ...]


@dataclass(frozen=True, kw_only=True)
class OperatorInfo(OperatorCall):
    """One operator of a bundle."""

    outputs: tuple[OperatorOutput, ...]
    tiles: int


@dataclass(frozen=True)
class TargetInfo:
    """The machine that a bundle is for."""

    name: str
    triple: str
    emitter: str  # a word of FORMS
    features: tuple[str, ...]
    glibc: str | None = None  # the oldest that the library loads on, as "2.17"; None where it does not say

    @property
    def form(self) -> ProgramForm:
        """How the bundle holds its program."""
        return FORMS[self.emitter]


class Member(NamedTuple):
    """What the manifest says of a member."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """All of `manifest.json`; `versions` and `source` are kept unchanged."""

    name: str
    versions: Mapping[str, str]
    target: TargetInfo
    source: Mapping[str, Any]
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    arena_bytes: int
    workspace_bytes: int
    weights_bytes: int
    operators: tuple[OperatorInfo, ...]
    members: Mapping[str, Member]
    golden_ties: tuple[float, ...]  # of each output, then state: how far a tie may move an element; 0: not at all
    states: tuple[StateInfo, ...] = ()
    state_bytes: int = 0
    golden_runs: int = 1  # in a row, where there is state

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one inference."""
        return sum(operator.macs for operator in self.operators)


def load(data: bytes) -> dict[str, Any]:
    """The JSON object of `manifest.json`, not yet checked but for its size, encoding, syntax and repeated keys."""
    if len(data) > MAX_MANIFEST_BYTES:
        raise BundleError(f"manifest.json has {len(data)} bytes, at most {MAX_MANIFEST_BYTES} are allowed. {_REBUILD}")
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=_object, parse_constant=_constant)
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        raise BundleError(f"manifest.json is not valid UTF-8 JSON: {error}. {_REBUILD}") from error
    if not isinstance(value, dict):
        raise BundleError(f"manifest.json holds a {type(value).__name__}, expected an object. {_REBUILD}")
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key occurs twice in one object")
    return result


def _constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def from_dict(d: Mapping[str, Any]) -> Manifest:
    """Check a manifest read or about to be written; raises BundleError naming the field that is wrong."""
    schema = d.get("schema")
    if type(schema) is not int or schema != SCHEMA:
        raise BundleError(f"manifest schema is {schema!r}, this version of subbyte reads {SCHEMA}. {_REBUILD}")
    if "programs" in d:
        raise BundleError(
            "manifest.json: 'programs' is for bundles with several CPU feature levels, which this version of subbyte "
            "does not read. Update subbyte, or compile for one level: `subbyte compile model.onnx --target x86-64-v3`."
        )
    inputs = _rows(d, "inputs", "manifest", _tensor, MAX_TENSORS)
    outputs = _rows(d, "outputs", "manifest", _tensor, MAX_TENSORS)
    for side, tensors in (("inputs", inputs), ("outputs", outputs)):
        if len({tensor.name for tensor in tensors}) != len(tensors):
            raise _wrong(side, "two tensors of one name", "distinct names")
    if not outputs:
        raise _wrong("outputs", "none", "at least one")
    states = _states(d, inputs)
    manifest = Manifest(
        name=_text(d, "name", "manifest"),
        versions=_texts(d, "versions"),
        target=_target(_mapping(d, "target", "manifest")),
        source=_mapping(d, "source", "manifest"),
        inputs=inputs,
        outputs=outputs,
        arena_bytes=_count(d, "arena_bytes", "manifest", MAX_PLACE),
        workspace_bytes=_count(d, "workspace_bytes", "manifest", MAX_PLACE),
        weights_bytes=_count(d, "weights_bytes", "manifest", MAX_PLACE),
        operators=_rows(d, "operators", "manifest", _operator, MAX_OPERATORS),
        members=_members(_mapping(d, "members", "manifest")),
        golden_ties=_ties(d, len(outputs) + len(states)),
        states=states,
        state_bytes=_state_bytes(d, states),
        golden_runs=_integer(d["golden"], "runs", "golden", 1, MAX_RUNS) if states and "golden" in d else 1,
    )
    _check_places(manifest)
    return manifest


# ---- parts ----


def _target(d: Mapping[str, Any]) -> TargetInfo:
    features = d.get("features")
    if not isinstance(features, (list, tuple)) or not all(isinstance(f, str) and f for f in features):
        raise _wrong("target.features", features, "a list of feature names")
    glibc = d.get("glibc")
    if glibc is not None and not (isinstance(glibc, str) and _GLIBC.fullmatch(glibc)):
        raise _wrong("target.glibc", glibc, "a version such as '2.17'")
    return TargetInfo(
        _text(d, "name", "target"),
        _text(d, "triple", "target"),
        _one_of(d, "emitter", "target", tuple(FORMS)),
        tuple(features),
        glibc,
    )


def _tensor(d: Mapping[str, Any], where: str) -> TensorInfo:
    tensor = TensorInfo(
        _text(d, "name", where), _one_of(d, "dtype", where, tuple(MODEL_DTYPES)), _shape(d.get("shape"), where)
    )
    if tensor.nbytes > MAX_TENSOR_BYTES:
        raise _wrong(f"{where}.shape", tensor.shape, f"at most {MAX_TENSOR_BYTES} bytes")
    return tensor


def _states(d: Mapping[str, Any], inputs: tuple[TensorInfo, ...]) -> tuple[StateInfo, ...]:
    """What lives between runs; nothing in a manifest that does not say."""
    if "states" not in d:
        return ()
    states = _rows(d, "states", "manifest", _state, MAX_TENSORS)
    names = [tensor.name for tensor in (*inputs, *states)]
    if len(set(names)) != len(names):
        raise _wrong("states", "a name of an input or another state", "distinct names")
    return states


def _state(d: Mapping[str, Any], where: str) -> StateInfo:
    tensor = _tensor(d, where)
    return StateInfo(tensor.name, tensor.dtype, tensor.shape, _text(d, "output", where))


def _state_bytes(d: Mapping[str, Any], states: tuple[StateInfo, ...]) -> int:
    expected = sum(-(-state.nbytes // STATE_ALIGNMENT) * STATE_ALIGNMENT for state in states)
    expected += STATE_WORD if states else 0
    found = _count(d, "state_bytes", "manifest", MAX_PLACE) if states or "state_bytes" in d else 0
    if found != expected:
        raise _wrong("state_bytes", found, f"{expected} for {len(states)} states")
    return found


def _ties(d: Mapping[str, Any], outputs: int) -> tuple[float, ...]:
    """Of each output and state."""
    if "golden" not in d:
        return (0.0,) * outputs
    ties = _mapping(d, "golden", "manifest").get("ties")
    if not isinstance(ties, (list, tuple)) or len(ties) != outputs:
        raise _wrong("golden.ties", ties, f"a list of {outputs} numbers")
    if not all(type(tie) in (int, float) and math.isfinite(tie) and tie >= 0 for tie in ties):
        raise _wrong("golden.ties", ties, "finite numbers from 0")
    return tuple(float(tie) for tie in ties)


def _operator(d: Mapping[str, Any], where: str) -> OperatorInfo:
    fallback = d.get("fallback")
    if fallback is not None and not isinstance(fallback, str):
        raise _wrong(f"{where}.fallback", fallback, "null or the reason")
    bits = d.get("bits_per_weight")
    if isinstance(bits, bool) or not isinstance(bits, (int, float)) or not 0 <= bits <= 1e6:
        raise _wrong(f"{where}.bits_per_weight", bits, "a number of bits")
    return OperatorInfo(
        name=_text(d, "name", where),
        kind=_text(d, "kind", where),
        kernel=_text(d, "kernel", where),
        tiles=_count(d, "tiles", where, (1 << 31) - 1),
        activation=_text(d, "activation", where),
        weights=_text(d, "weights", where),
        bits_per_weight=float(bits),
        macs=_count(d, "macs", where, 1 << 62),
        per_mac=_operations(d, "per_mac", where),
        weight_bytes=_count(d, "weight_bytes", where, MAX_PLACE),
        input_bytes=_count(d, "input_bytes", where, 1 << 40),
        output_bytes=_count(d, "output_bytes", where, 1 << 40),
        fallback=fallback,
        per_element=_operations(d, "per_element", where),
        outputs=_rows(d, "outputs", where, _output, MAX_TENSORS),
    )


def _operations(d: Mapping[str, Any], key: str, where: str) -> Mapping[str, float] | None:
    """Counts by operation, as Python's own numbers; None where an older manifest has none."""
    found = d.get(key)
    if found is None:
        return None
    if not isinstance(found, dict) or not all(type(n) in (int, float) and 0 <= n <= 1e6 for n in found.values()):
        raise _wrong(f"{where}.{key}", found, "how often each operation is done")
    return {str(name): float(count) for name, count in found.items()}


def _output(d: Mapping[str, Any], where: str) -> OperatorOutput:
    result = OperatorOutput(
        tensor=_text(d, "tensor", where),
        storage=_one_of(d, "storage", where, STORAGES),
        dtype=_one_of(d, "dtype", where, tuple(DTYPES)),
        zero_point=_integer(d, "zero_point", where, -(1 << 31), (1 << 31) - 1),
        shape=_shape(d.get("shape"), where),
        layout=_one_of(d, "layout", where, LAYOUTS),
        channels=_count(d, "channels", where, MAX_PLACE),
        space=_one_of(d, "space", where, SPACES),
        offset=_count(d, "offset", where, MAX_PLACE),
        bytes=_count(d, "bytes", where, MAX_PLACE),
    )
    want = {"codes": "uint8", "bits": "uint32"}.get(result.storage, result.dtype)
    if result.dtype != want:
        raise _wrong(f"{where}.dtype", result.dtype, f"{want} for storage {result.storage}")
    expected = math.prod(stored_shape(result, where)) * DTYPES[result.dtype]
    if result.bytes != expected:
        raise _wrong(f"{where}.bytes", result.bytes, f"{expected} for {result.dtype} {list(result.shape)}")
    return result


def stored_shape(output: OperatorOutput, where: str = "output") -> tuple[int, ...]:
    """The shape of the elements in memory: that of `output`, with the last axis in words for storage `bits`.

    A manifest may give the last axis of packed bits in channels or in words; raises BundleError when it is neither.
    """
    if output.storage != "bits":
        return output.shape
    words = -(-output.channels // 32)
    if not output.shape or output.channels < 1 or output.shape[-1] not in (output.channels, words):
        raise _wrong(f"{where}.shape", list(output.shape), f"last axis {output.channels} channels or {words} words")
    return (*output.shape[:-1], words)


def _members(d: Mapping[str, Any]) -> dict[str, Member]:
    members = {}
    for name, row in d.items():
        where = f"members['{name[:80]}']"
        if not isinstance(row, Mapping):
            raise _wrong(where, row, "an object")
        sha256 = row.get("sha256")
        if not isinstance(sha256, str) or not _SHA256.fullmatch(sha256):
            raise _wrong(f"{where}.sha256", sha256, "64 lower-case hexadecimal digits")
        members[name] = Member(_count(row, "bytes", where, MAX_TENSOR_BYTES), sha256)
    return members


def _check_places(manifest: Manifest) -> None:
    """Raise BundleError for a traced result that is not inside its buffer."""
    sizes = {"input": manifest.inputs, "output": manifest.outputs}
    limits = {"arena": manifest.arena_bytes, "weights": manifest.weights_bytes, "workspace": manifest.workspace_bytes}
    limits["state"] = manifest.state_bytes
    for number, operator in enumerate(manifest.operators):
        for index, output in enumerate(operator.outputs):
            where = f"operators[{number}].outputs[{index}]"
            if output.space in limits:
                if output.offset + output.bytes > limits[output.space]:
                    place = f"{output.offset} + {output.bytes}"
                    raise _wrong(where, place, f"at most {limits[output.space]}, the bytes of the {output.space}")
                continue
            tensors = sizes[output.space]
            if output.offset >= len(tensors) or tensors[output.offset].nbytes != output.bytes:
                raise _wrong(
                    where, f"{output.space} {output.offset} of {output.bytes} bytes", "a model tensor of that size"
                )


# ---- fields ----


def _wrong(where: str, got: object, expected: str) -> BundleError:
    return BundleError(f"manifest.json: {where} is {str(got)[:120]!r}, expected {expected}. {_REBUILD}")


def _mapping(d: Mapping[str, Any], key: str, where: str) -> Mapping[str, Any]:
    value = d.get(key)
    if not isinstance(value, Mapping) or not all(isinstance(k, str) for k in value):
        raise _wrong(f"{where}.{key}", value, "an object")
    return value


def _texts(d: Mapping[str, Any], key: str) -> Mapping[str, str]:
    value = _mapping(d, key, "manifest")
    if not all(isinstance(text, str) for text in value.values()):
        raise _wrong(key, value, "an object of strings")
    return value


def _text(d: Mapping[str, Any], key: str, where: str) -> str:
    value = d.get(key)
    if not isinstance(value, str) or len(value) > MAX_TEXT:
        raise _wrong(f"{where}.{key}", value, f"a string of at most {MAX_TEXT} characters")
    return value


def _one_of(d: Mapping[str, Any], key: str, where: str, allowed: tuple[str, ...]) -> str:
    value = d.get(key)
    if not isinstance(value, str) or value not in allowed:
        raise _wrong(f"{where}.{key}", value, f"one of {', '.join(allowed)}")
    return value


def _integer(d: Mapping[str, Any], key: str, where: str, low: int, high: int) -> int:
    value = d.get(key)
    if type(value) is not int or not low <= value <= high:  # bool is an int; not here
        raise _wrong(f"{where}.{key}", value, f"an integer in {low} .. {high}")
    return value


def _count(d: Mapping[str, Any], key: str, where: str, limit: int) -> int:
    return _integer(d, key, where, 0, limit)


def _shape(value: object, where: str) -> tuple[int, ...]:
    if not isinstance(value, (list, tuple)) or len(value) > MAX_RANK:
        raise _wrong(f"{where}.shape", value, f"a list of at most {MAX_RANK} axes")
    if not all(type(axis) is int and 1 <= axis <= MAX_PLACE for axis in value):
        raise _wrong(f"{where}.shape", value, "positive integers")
    return tuple(value)


def _rows(
    d: Mapping[str, Any], key: str, where: str, read: Callable[[Mapping[str, Any], str], T], limit: int
) -> tuple[T, ...]:
    rows = d.get(key)
    here = key if where == "manifest" else f"{where}.{key}"
    if not isinstance(rows, (list, tuple)) or len(rows) > limit:
        raise _wrong(here, rows, f"a list of at most {limit} objects")
    for index, row in enumerate(rows):
        if not isinstance(row, Mapping):
            raise _wrong(f"{here}[{index}]", row, "an object")
    return tuple(read(row, f"{here}[{index}]") for index, row in enumerate(rows))
