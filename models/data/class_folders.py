"""Files in folders named after their classes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from subbyte.errors import DataError
from subbyte.models.data.split import is_held_out

Labelled = tuple[Path, int]  # a file and the number of its class


def class_folders(
    path: Path, suffixes: Sequence[str], share: float
) -> tuple[tuple[str, ...], list[Labelled], list[Labelled]]:
    """The names of the classes, the files to train on and those to test on, sorted.

    From `path`/train/<class>/ and `path`/test/<class>/; without these from `path`/<class>/, where a file is held out by
    the SHA-256 of its name within `path`. Raises DataError for what is not so, or has no files.
    """
    parts = [part for part in ("train", "test") if (path / part).is_dir()]
    if len(parts) == 1:
        missing = "test" if parts == ["train"] else "train"
        raise DataError(f"{path}: there is no folder '{missing}'; expected {path}/{missing}/<class>/<file>.")
    root = path / "train" if parts else path
    names = tuple(sorted(folder.name for folder in root.iterdir() if folder.is_dir())) if root.is_dir() else ()
    if parts:
        unseen = sorted(f.name for f in (path / "test").iterdir() if f.is_dir() and f.name not in names)
        if unseen:
            raise DataError(f"{path}/test: class '{unseen[0]}' has no folder in {path}/train.")
        return names, files_of(root, names, suffixes), files_of(path / "test", names, suffixes)
    files = files_of(path, names, suffixes)
    held = [is_held_out(file.relative_to(path).as_posix(), share) for file, _ in files]
    if all(held) or not any(held):
        raise DataError(
            f"{path}: {len(files)} files with a share of {share:g} held out leave {len(files) - sum(held)} to train on "
            f"and {sum(held)} to test on; give more files, another test_share, or folders train/ and test/."
        )
    trained, tested = (
        [one for one, is_test in zip(files, held, strict=True) if is_test == part] for part in (False, True)
    )
    return names, trained, tested


def files_of(folder: Path, names: Sequence[str], suffixes: Sequence[str]) -> list[Labelled]:
    """The files below `folder`/<class>/ with one of the suffixes, class by class; raises DataError for none."""
    files: list[Labelled] = []
    for label, name in enumerate(names):
        files += [(file, label) for file in sorted((folder / name).rglob("*")) if file.suffix.lower() in suffixes]
    if not files:
        raise DataError(f"{folder}: no files ({', '.join(suffixes)}) in folders named after classes.")
    return files
