"""Lightning's Trainer for a run: devices, precision, accumulation and clipping are its work."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from subbyte.errors import UsageError
from subbyte.models.train.lightning import Callback, MisconfigurationException, Trainer
from subbyte.models.train.run import Run
from subbyte.models.train.state import TrainingStateIO


def make_trainer(run: Run, folder: Path, callbacks: Sequence[Callback]) -> Trainer:
    """The Trainer; raises UsageError for devices, strategies and precisions that this machine does not have."""
    chosen: dict[str, Any] = {
        "accelerator": run.accelerator,
        "devices": run.devices,
        "strategy": run.strategy,
        "num_nodes": run.num_nodes,
        "precision": run.precision,
    }
    try:
        return Trainer(
            **chosen,
            max_epochs=run.epochs,
            accumulate_grad_batches=run.accumulate,
            gradient_clip_val=run.clip,
            plugins=[TrainingStateIO()],
            callbacks=list(callbacks),
            default_root_dir=folder,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
        )
    except (ValueError, TypeError, MisconfigurationException) as error:
        asked = ", ".join(f"{name} {value}" for name, value in chosen.items() if value not in ("auto", 1))
        raise UsageError(f"Lightning cannot train with {asked}: {error}") from error


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Hold back Lightning's notes on hardware, on loaders without workers, and on torch internals that it uses.

    Also its warning that the loader is not resumable: our order of samples is restored by the learner.
    """
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.WARNING)
    with warnings.catch_warnings():
        for message in (
            ".*does not have many workers.*",
            ".*LeafSpec.* is deprecated.*",
            ".*torch.jit.script_method.* is deprecated.*",  # torch's own compiler calls it,
            ".*autograd.function.Function.* should not be instantiated.*",  # and makes one
            ".*your dataloader is not resumable.*",
        ):
            warnings.filterwarnings("ignore", message=message)
        try:
            yield
        finally:
            logger.setLevel(level)
