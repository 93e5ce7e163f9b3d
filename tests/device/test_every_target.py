"""Every target: small networks of every scheme, run by what the target says, give the golden bits."""

from __future__ import annotations

from pathlib import Path

import pytest
from emulators import RUN
from low_bit_models import small_model

from subbyte.runtime.bundle import open_bundle
from subbyte.runtime.golden import golden_outputs
from subbyte.tvm_kernels.compiler import compile
from subbyte.tvm_kernels.machines import all_targets

pytestmark = pytest.mark.device

NETWORKS = [
    *(("ds_cnn", scheme) for scheme in ("int8", "int4", "ternary", "pow2", "binary")),
    *(("resnet8", scheme) for scheme in ("int4", "binary")),
]


def test_an_emulator_runs_every_target_but_those_that_say_so() -> None:
    assert {t.name for t in all_targets() if not t.emulator} == {"host", "x86-64-v4"}


@pytest.mark.parametrize("target", RUN)
@pytest.mark.parametrize(("network", "scheme"), NETWORKS)
def test_it_gives_the_golden_bits(target: str, network: str, scheme: str, tmp_path: Path) -> None:
    report = compile(small_model(network, scheme), tmp_path / "m.subbyte", target=target, strict=True)
    assert report.fallbacks == ()
    with open_bundle(tmp_path / "m.subbyte") as bundle:
        members = {name: bundle.read(name) for name in bundle.members}
        golden = golden_outputs(bundle)
    assert RUN[target](members, golden, tmp_path) == (True, [0])
