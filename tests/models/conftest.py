"""A checkpoint on disk."""

from __future__ import annotations

from pathlib import Path

import pytest
from saved_checkpoint import config_for, trained_a_little

from subbyte.models import save_checkpoint


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    config = config_for("ternary")
    return save_checkpoint(tmp_path / "c", trained_a_little(config), config, {"accuracy": 0.5})
