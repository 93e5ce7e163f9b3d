"""The folder that a run writes to: whether it is free, and which run it resumes."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path

from subbyte.errors import CheckpointError, UsageError
from subbyte.files.output import check_output_folder
from subbyte.files.plain import open_plain
from subbyte.models.checkpoint import Config, read_config, read_metrics
from subbyte.models.checkpoint_files import STATE, files_of
from subbyte.models.tasks import get_task
from subbyte.models.train.run import CONFIGURATION, Run, differences, may_change, read_run


def prepare(run: Run, resume: bool, overwrite: bool) -> tuple[Path, Run | None]:
    """The folder of the run, checked, and the run in it that goes on, if one does.

    Raises UsageError for a folder that is taken or read by the run, CheckpointError for a run that was another.
    """
    if resume and overwrite:
        raise UsageError("resume goes on with the run in out, overwrite replaces it: ask for one of them.")
    assert run.out is not None
    folder = Path(run.out)
    check_output_folder(folder, "out")
    for name, source in (("init", run.init), ("teacher", run.teacher)):
        if source is not None and folder.exists() and folder.samefile(source):
            raise UsageError(f"out '{folder}' is the folder of {name}, which training would replace; name another out.")
    if resume and (folder / STATE).is_file():
        return folder, _run_before(folder, run)
    if not overwrite:
        _refuse_taken(folder, resume)
    return folder, None


def _run_before(folder: Path, run: Run) -> Run:
    """The run in `folder`; raises CheckpointError, with each difference, where `run` is not that run going on."""
    try:
        before = read_run(folder / CONFIGURATION)
    except UsageError as error:
        raise CheckpointError(
            f"{folder / STATE}: cannot resume from it ({error}); train again without resume."
        ) from error
    other = [says for name, says in differences(before, run).items() if not may_change(name)]
    if other:
        raise CheckpointError(
            f"{folder / CONFIGURATION}: cannot resume, {'; '.join(other)}; ask for the same run or choose another out."
        )
    return before


def _refuse_taken(folder: Path, resume: bool) -> None:
    """Raise `UsageError` if `folder` holds a checkpoint, which training anew would replace."""
    if not files_of(folder):
        return
    try:
        config, metrics = read_config(folder), read_metrics(folder)
        what = f"a {config.scheme} {config.model or 'model'}"
        what += f" (after epoch {metrics['epochs']:.0f}, {_score(config, metrics)})" if metrics else ""
    except (CheckpointError, KeyError):
        what = "a checkpoint, damaged or unfinished"
    go_on = f"without the {STATE} to go on from" if resume else "which resume=True (--resume) goes on with"
    raise UsageError(
        f"{folder} holds {what}, {go_on}. Replace it with overwrite=True (--overwrite), or choose another out (--out)."
    )


def _score(config: Config, metrics: Mapping[str, float]) -> str:
    try:
        metric = get_task(config.task, **config.task_options).metric
    except UsageError:  # a task that this program has not
        return f"task '{config.task}'"
    return f"test {metric.title} {metric.words(metrics[metric.name])}"


def read_log(file: Path) -> tuple[dict[str, float], ...]:
    """The rows of a log, a number for each column."""
    with io.TextIOWrapper(open_plain(file), newline="") as stream:
        return tuple({name: float(value) for name, value in row.items()} for row in csv.DictReader(stream))
