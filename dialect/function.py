"""The functions of domain `subbyte`, each defined by one `Function`, and their registry by name.

To add a function, add a file to this package that makes a `Function` and calls `register`; nothing else is edited:
export, check, inspect, compile, the float32 baseline and docs/onnx-dialect.md use the object. To change a body, give it
the next version of the domain. If the old body computes the same, add it to `earlier`: calls in files of the old
version stay recognized. Otherwise remove it: calls in those files are inlined, and computed as the file defines them.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from enum import Enum
from functools import cache, cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx.parser

from subbyte import dialect
from subbyte.dialect.names import DOMAIN, DOMAIN_VERSION, OPSET
from subbyte.dialect.walk import label_of
from subbyte.errors import ExportError, ModelError, RegistrationError, UnknownNameError, one_line
from subbyte.formats import Format, all_formats
from subbyte.formats.energy import wrong_operations

Array = npt.NDArray[Any]
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Call:
    """The inputs of one call."""

    shapes: tuple[Shape, ...]
    constants: tuple[Array | None, ...]  # None: a run-time value


# ---- roles ----


@dataclass(frozen=True)
class Quantizer:
    """The first output is the integer-valued codes of the first input."""

    # from the constants of all inputs (None: a run-time value) to the format: "uint8", "int8 per token", "binary"
    codes: Callable[..., str]


@dataclass(frozen=True)
class PackedWeights:
    """The output is low-bit weights, stored packed in the file."""

    format: Format
    by_group: bool  # values, with one scale per group of a row; else levels


@dataclass(frozen=True)
class Values:
    """Any other function of run-time values."""

    integers: bool  # whether the first output is integer-valued


Role = Quantizer | PackedWeights | Values


class Exactness(Enum):
    """Whether engines agree on the result of the body."""

    BIT_EXACT = "every engine computes the same bits"
    FLOAT = "results depend on the engine's order of summation, exp or erf"


# ---- what replaces a call in a float32 baseline ----


@dataclass(frozen=True)
class Rescale:
    """The first output is the first input times input `factor` (None: unchanged); the outputs `ones` are 1."""

    factor: int | None = None
    ones: tuple[int, ...] = ()


@dataclass(frozen=True)
class Dequantized:
    """A float32 constant: the dequantized weights."""


@dataclass(frozen=True)
class Body:
    """The call itself, whose body computes in float32."""


InFloat = Rescale | Dequantized | Body

# ---- functions ----

_MISSING: Any = object()  # default of required fields, so that `checked` can name the one that is missing


@dataclass(frozen=True, eq=False, kw_only=True)
class Function:
    """A function of the dialect. The first input is the value that it transforms, the others are parameters."""

    name: str
    version: int = _MISSING  # the first version of the domain with this body
    summary: str = _MISSING  # one sentence
    body: str = _MISSING  # ONNX text: Name (inputs) => (outputs) { nodes }
    role: Role = _MISSING
    shapes: Callable[[Call], tuple[Shape, ...]] = _MISSING  # of the outputs, float32
    reference: Callable[..., tuple[Array, ...]] = _MISSING  # NumPy: arrays of all inputs to float32 outputs
    exactness: Exactness = _MISSING
    in_float: InFloat = _MISSING
    finite: bool = _MISSING  # whether constant inputs must be finite
    macs: Callable[[Call], int] = _MISSING
    energy: Mapping[str, float] = _MISSING  # counts of operations (formats/energy.py) for each element of its result
    example: Callable[[np.random.Generator], tuple[Array, ...]] = _MISSING  # inputs for tests
    earlier: tuple[tuple[int, str], ...] = ()  # (version, body) of older versions that compute the same

    @cached_property
    def proto(self) -> onnx.FunctionProto:
        """The body as a FunctionProto, read-only."""
        return self._parsed(self.body)

    def bodies(self, version: int) -> tuple[onnx.FunctionProto, ...]:
        """The bodies in a version of the domain; empty if the version is unknown or does not have the function."""
        if version > DOMAIN_VERSION:
            return ()
        known = [(self.version, self.body), *self.earlier]
        since = max((since for since, _ in known if since <= version), default=None)
        return tuple(self.proto if body is self.body else self._parsed(body) for at, body in known if at == since)

    @property
    def integers(self) -> bool:
        """Whether the first output is integer-valued."""
        match self.role:
            case Quantizer():
                return True
            case PackedWeights(format=fmt, by_group=by_group):
                return fmt.levels.integer and not by_group
            case Values(integers=integers):
                return integers

    def _parsed(self, body: str) -> onnx.FunctionProto:
        proto = onnx.parser.parse_function(f'<domain: "{DOMAIN}", opset_import: ["" : {OPSET}]>\n{body}')
        proto.doc_string = self.summary
        return proto


def checked(function: Function) -> Function:
    """The function; raises RegistrationError for a field that is missing or wrong."""
    where = f"function {DOMAIN}.{function.name}"
    for part in fields(function):
        if getattr(function, part.name) is _MISSING:
            raise RegistrationError(f"{where} lacks its '{part.name}'; dialect/function.py lists all fields")
    for name, (expected, holds) in _EXPECTED.items():
        got = getattr(function, name)
        if not holds(got):
            raise RegistrationError(f"{where}: its '{name}' is {str(got)[:80]!r}, expected {expected}")
    wrong = wrong_operations(function.energy)
    if wrong:
        raise RegistrationError(f"{where}: its 'energy' is {wrong}")
    if not all(1 <= version <= DOMAIN_VERSION for version in (function.version, *dict(function.earlier))):
        raise RegistrationError(
            f"{where}: its 'version' is {function.version}, but the domain has 1 to {DOMAIN_VERSION}: raise "
            "DOMAIN_VERSION in dialect/names.py"
        )
    proto = _checked_body(where, function, function.body)
    for _, body in function.earlier:
        _checked_body(where, function, body)
    if isinstance(function.in_float, Rescale):
        _check_rescale(where, function.in_float, proto)
    _check_example(where, function, proto)
    return function


def _checked_body(where: str, function: Function, body: str) -> onnx.FunctionProto:
    try:
        proto = function.proto if body is function.body else function._parsed(body)
    except Exception as error:  # the parser has no common base for its errors
        raise RegistrationError(f"{where}: its 'body' is not ONNX text: {one_line(error)}") from error
    if proto.name != function.name:
        raise RegistrationError(f"{where}: its 'body' defines {proto.name}; use the same name for both")
    known = {"", *proto.input}
    for node in proto.node:
        if node.domain or not onnx.defs.has(node.op_type, OPSET, ""):
            operator = f"{node.domain}.{node.op_type}".lstrip(".")
            raise RegistrationError(f"{where}: its 'body' has {operator}, expected operators of ONNX in opset {OPSET}")
        _check_computed(where, known, node.input)
        known.update(node.output)
    _check_computed(where, known, proto.output)
    return proto


def _check_computed(where: str, known: set[str], names: Iterable[str]) -> None:
    for name in names:
        if name not in known:
            raise RegistrationError(
                f"{where}: its 'body' reads '{name}', which is neither an input nor an earlier output"
            )


def _check_rescale(where: str, meaning: Rescale, proto: onnx.FunctionProto) -> None:
    if not 0 <= (meaning.factor or 0) < len(proto.input):
        raise RegistrationError(
            f"{where}: its 'in_float' multiplies by input {meaning.factor}, expected one of the "
            f"{len(proto.input)} inputs of its body"
        )
    if not all(0 <= index < len(proto.output) for index in meaning.ones):
        raise RegistrationError(
            f"{where}: its 'in_float' has outputs {meaning.ones} equal to 1, expected some of the {len(proto.output)} "
            "outputs of its body"
        )


def _check_example(where: str, function: Function, proto: onnx.FunctionProto) -> None:
    """Run the functions of NumPy on the example: what they return is known only then."""
    inputs = _returned(where, "example", lambda: [np.asarray(a) for a in function.example(np.random.default_rng(0))])
    if len(inputs) != len(proto.input):
        raise RegistrationError(f"{where}: its 'example' has {len(inputs)} inputs, its body {', '.join(proto.input)}")
    outputs = _returned(where, "reference", lambda: [(a.dtype, a.shape) for a in function.reference(*inputs)])
    if [dtype for dtype, _ in outputs] != [np.float32] * len(proto.output):
        raise RegistrationError(
            f"{where}: its 'reference' returns {', '.join(str(dtype) for dtype, _ in outputs)}, expected float32 for "
            f"each of {', '.join(proto.output)}"
        )
    call = Call(tuple(array.shape for array in inputs), tuple(inputs))
    shapes = _returned(where, "shapes", lambda: list(function.shapes(call)))
    if shapes != [shape for _, shape in outputs]:
        raise RegistrationError(
            f"{where}: its 'shapes' of the example are {shapes}, but its 'reference' returns "
            f"{[shape for _, shape in outputs]}"
        )
    macs = _returned(where, "macs", lambda: function.macs(call))
    if type(macs) is not int or macs < 0:
        raise RegistrationError(f"{where}: its 'macs' of the example is {macs!r}, expected an integer, at least 0")


def _returned(where: str, part: str, run: Callable[[], Any]) -> Any:
    try:
        return run()
    except Exception as error:  # the function is anyone's
        reason = f"{type(error).__name__}: {one_line(error)}"
        raise RegistrationError(f"{where}: its '{part}' fails on its example: {reason}") from error


def _is_role(role: Any) -> bool:
    match role:
        case Quantizer(codes=codes):
            return callable(codes)
        case PackedWeights(format=fmt, by_group=by_group):
            return isinstance(fmt, Format) and isinstance(by_group, bool)
        case Values(integers=integers):
            return isinstance(integers, bool)
    return False


def _is_earlier(earlier: Any) -> bool:
    return isinstance(earlier, tuple) and all(
        isinstance(one, tuple) and len(one) == 2 and isinstance(one[0], int) and isinstance(one[1], str)
        for one in earlier
    )


# For each field, what is expected, and the check.
_EXPECTED: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "name": ("a name in letters, digits and _", lambda name: isinstance(name, str) and name.isidentifier()),
    "version": ("an integer", lambda version: type(version) is int),
    "summary": ("a sentence", lambda summary: isinstance(summary, str) and bool(summary)),
    "body": ("ONNX text", lambda body: isinstance(body, str)),
    "role": ("a Quantizer, PackedWeights or Values with its fields", _is_role),
    "shapes": ("a function of a Call", callable),
    "reference": ("a function of the inputs", callable),
    "exactness": ("a member of Exactness", lambda exactness: isinstance(exactness, Exactness)),
    "in_float": ("a Rescale, Dequantized or Body", lambda meaning: isinstance(meaning, InFloat)),
    "finite": ("True or False", lambda finite: isinstance(finite, bool)),
    "macs": ("a function of a Call", callable),
    "example": ("a function of a random generator", callable),
    "earlier": ("pairs of a version and a body", _is_earlier),
}


_registry: dict[str, Function] = {}
_families: list[Callable[[], Iterable[Function]]] = []


def register(function: Function) -> Function:
    """Register a function; raises RegistrationError when its name is taken, or for a field that is missing or wrong."""
    if not isinstance(function, Function):
        raise RegistrationError(f"register expects a Function, got {function!r}")
    if function.name in _registry or any(function.name in (fmt.decoder, fmt.dequantizer) for fmt in all_formats()):
        raise RegistrationError(f"function {DOMAIN}.{function.name} is registered twice; rename one of them")
    _registry[function.name] = checked(function)
    return function


def family(make: Callable[[], Iterable[Function]]) -> Callable[[], Iterable[Function]]:
    """Register functions derived from another registry, which may grow: `make` is called on each use."""
    _families.append(make)
    return make


def all_functions() -> Iterator[Function]:
    """Every function of the library."""
    _import_all()
    yield from tuple(_registry.values())
    for make in _families:
        yield from make()


def find(name: str) -> Function | None:
    """The function of that name, or None."""
    _import_all()
    return _registry.get(name) or next((f for make in _families for f in make() if f.name == name), None)


def get(name: str) -> Function:
    """The function of that name; raises UnknownNameError with the nearest name."""
    found = find(name)
    if found is None:
        raise UnknownNameError(f"function of domain {DOMAIN}", name, (function.name for function in all_functions()))
    return found


def output_shapes(name: str, shapes: Sequence[Shape], constants: Sequence[Array | None]) -> tuple[Shape, ...]:
    """The shapes of the outputs of a call with inputs of these shapes; `constants`: None of one computed at run time.

    Raises UnknownNameError, and ExportError for another number of inputs than the function has.
    """
    function = get(name)
    if len(shapes) != len(function.proto.input):
        raise ExportError(
            f"{DOMAIN}.{name} takes {', '.join(function.proto.input)}, and is called with {len(shapes)} inputs"
        )
    return function.shapes(Call(tuple(shapes), tuple(constants)))


def function_of(node: onnx.NodeProto) -> Function | None:
    """The function that a node calls, None in other domains; raises ModelError for an unknown function."""
    if node.domain != DOMAIN:
        return None
    found = find(node.op_type)
    if found is None:
        raise ModelError(
            f"node '{label_of(node)}' calls {DOMAIN}.{node.op_type}, which is neither in version "
            f"{DOMAIN_VERSION} of the dialect nor defined in the file; export the model again"
        )
    return found


@cache
def _import_all() -> None:
    """Import all modules of this package, which register functions."""
    for module in pkgutil.iter_modules(dialect.__path__, f"{dialect.__name__}."):
        importlib.import_module(module.name)
