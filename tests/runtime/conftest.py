"""A real library in a real bundle, fresh for each test."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_bundle import build_library, tiny_manifest, tiny_members

from subbyte.runtime.bundle import write_bundle


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The tiny model as a shared library."""
    return build_library(tmp_path_factory.mktemp("library"))


@pytest.fixture
def bundle_path(tmp_path: Path, library: bytes) -> Path:
    """A good bundle of the tiny model."""
    return write_bundle(tmp_path / "tiny.subbyte", tiny_manifest(), tiny_members(library))
