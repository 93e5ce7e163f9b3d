"""matplotlib without its list of fonts in the home folder, which it writes there when it is first imported."""

from __future__ import annotations

import atexit
import importlib
import importlib.util
import os
import shutil
import sys
import tempfile
from pathlib import Path


def import_matplotlib() -> None:
    """Import matplotlib, where it is installed and not imported yet; writes nothing at home.

    A list of fonts that is there already is read; else one is made in a folder for temporary files, as long as this
    process runs. The user's own settings of matplotlib count either way.
    """
    if "matplotlib.font_manager" in sys.modules or importlib.util.find_spec("matplotlib") is None:
        return
    variable = _variable()
    if variable is None:
        importlib.import_module("matplotlib.font_manager")
        return
    folder = tempfile.mkdtemp(prefix="subbyte-matplotlib-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    before = os.environ.get(variable)
    os.environ[variable] = folder
    try:
        importlib.import_module("matplotlib.font_manager")
    finally:
        del os.environ[variable]
        if before is not None:
            os.environ[variable] = before


def _variable() -> str | None:
    """What tells matplotlib where its list of fonts goes, where it would write one at home."""
    if os.environ.get("MPLCONFIGDIR"):
        return None
    if not sys.platform.startswith(("linux", "freebsd")):
        return None if (Path.home() / ".matplotlib").is_dir() else "MPLCONFIGDIR"
    caches, settings = (
        Path(os.environ.get(variable) or Path.home() / folder) / "matplotlib"
        for variable, folder in (("XDG_CACHE_HOME", ".cache"), ("XDG_CONFIG_HOME", ".config"))
    )
    if any(caches.glob("fontlist-*.json")):
        return None
    return "XDG_CACHE_HOME" if settings.is_dir() else "MPLCONFIGDIR"
