"""ONNX's own node cases of kinds that gave wrong numbers: right now, or refused with the reason.

`python benchmarks/node_suite.py` runs all 1,884; this is one or two of each kind.
"""

from __future__ import annotations

import importlib.util
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import onnx
import pytest
from watched_rules import DONE, assert_readable, watch

from subbyte.errors import SubbyteError
from subbyte.tvm_kernels.explanation import Explanation
from subbyte.tvm_kernels.lowering import lower_graph

PATH = Path(__file__).parents[2] / "benchmarks" / "node_suite.py"
spec = importlib.util.spec_from_file_location("node_suite", PATH)
assert spec is not None
assert spec.loader is not None
node_suite = importlib.util.module_from_spec(spec)
sys.modules["node_suite"] = node_suite
spec.loader.exec_module(node_suite)

RIGHT = [  # (case, which try)
    ("test_layer_normalization_4d_axis1", 0),
    ("test_attention_4d_gqa_softcap", 0),
    ("test_attention_4d_causal_nonpad_negative_offset_structural_empty", 0),
    ("test_spacetodepth_crd_mode_example", 0),
    ("test_bitshift_left_int32_shift_ge_width", 0),
    ("test_bitshift_right_int8_negative_shift", 0),
    ("test_mod_float_edge_cases_fmod_0_float32", 0),
    ("test_scatter_elements_with_duplicate_indices", 0),
    ("test_scatternd_add", 0),
    ("test_maxunpool_export_without_output_shape", 1),
    ("test_reduce_max_keepdims_random", 2),
    ("test_resize_upsample_scales_cubic", 2),
    ("test_gru_defaults", 0),
    ("test_lstm_with_peepholes", 2),
    ("test_simple_rnn_bidirectional", 2),
]
REFUSED = [
    ("test_batchnorm_example_training_mode", 0, "its attribute training_mode is 1"),
    ("test_resize_downsample_scales_linear", 2, "no whole sizes"),
    ("test_resize_downsample_sizes_linear_antialias", 2, "its attribute antialias is 1"),
    ("test_roialign_mode_max", 1, "its attribute mode is max; handled: avg"),
    ("test_training_dropout", 2, "it is in training mode, where its result is random"),
    ("test_convtranspose_output_shape", 0, "its attribute output_shape is"),
    ("test_gru_batchwise", 0, "its attribute layout is 1; handled: its default"),
]


@pytest.fixture(scope="module")
def cases() -> dict[str, Any]:
    return {case.name: case for case in node_suite.cases()}


@pytest.mark.parametrize(("name", "number"), RIGHT)
def test_right(name: str, number: int, cases: dict[str, Any], tmp_path: Path) -> None:
    assert node_suite.attempt(node_suite.data_of(cases[name]), number, tmp_path) == (node_suite.TRIES[number], "")


@pytest.mark.parametrize(("name", "number", "reason"), REFUSED)
def test_refused(name: str, number: int, reason: str, cases: dict[str, Any], tmp_path: Path) -> None:
    word, line = node_suite.attempt(node_suite.data_of(cases[name]), number, tmp_path)
    assert word == "refused"
    assert reason in line


@pytest.mark.parametrize("first", range(4))
def test_no_rule_declines_in_silence(first: int, cases: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Every 24th case, its inputs after the first as constants."""
    silent, declined = watch(monkeypatch), 0
    for name in sorted(cases)[6 * first :: 24]:
        data = node_suite.data_of(cases[name])
        explanation = Explanation()
        with suppress(SubbyteError):  # a model that is not compiled
            model = node_suite.constant_inputs(onnx.load_from_string(data["model"]), data["data"][0][0])
            lower_graph(model, frozenset(), explanation=explanation)
        assert_readable(explanation)
        declined += len(explanation.declined)
    assert silent <= DONE
    assert declined > 20


def test_a_wrong_number_is_found(cases: dict[str, Any], tmp_path: Path) -> None:
    data = node_suite.data_of(cases["test_neg"])
    inputs, (wanted,) = data["data"][0]
    data["data"][0] = (inputs, [wanted * 1.01])
    word, line = node_suite.attempt(data, 0, tmp_path)
    assert word == "wrong"
    assert "element 0" in line
