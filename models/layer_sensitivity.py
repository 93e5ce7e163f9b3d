"""`measure_sensitivity`: how sensitive each layer of a model is, on samples of a training set, with loss and score."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from subbyte.errors import UsageError
from subbyte.models.data import Data
from subbyte.models.losses import Objective
from subbyte.models.named_model import NamedModel
from subbyte.models.post.calibration_data import calibration_samples
from subbyte.models.post.reporting import reporting, tracked
from subbyte.models.quant import Scheme
from subbyte.models.quant.recipe import Layer
from subbyte.models.quant.sensitivities import Sensitivities, sensitivity
from subbyte.models.tasks import Batch, Task, get_task

BATCH_SIZE = 64


def measure_sensitivity(
    model: NamedModel,
    data: Data,
    schemes: Sequence[str | Scheme],
    *,
    samples: int | None = None,
    seed: int = 0,
    progress: bool = False,
) -> Sensitivities:
    """`sensitivity` of a model on `samples` of the training set of `data`, not augmented, chosen by `seed`.

    Measured are the metric of the task, and its loss where that can be computed of single samples. Without `samples`
    they are as many as for calibration. Raises UsageError for data whose inputs the model does not take, and what
    `calibration_samples`, the task and `sensitivity` raise.
    """
    wanted = tuple(model.example.shape[1:])
    dtype = str(model.example.dtype).removeprefix("torch.")
    if (data.shape, data.dtype) != (wanted, dtype):
        raise UsageError(
            f"data set '{data.name}' has inputs {data.dtype} {list(data.shape)}, the model takes {dtype} "
            f"{list(wanted)}; name the data that it was trained on."
        )
    config = model.config
    name, options = (data.task, data.task_options) if config is None else (config.task, config.task_options)
    task = get_task(name, **options)
    task.check(data)
    read = calibration_samples(data, samples, BATCH_SIZE, seed)

    def track(steps: Sequence[tuple[Layer, Scheme]]) -> Iterable[tuple[Layer, Scheme]]:
        return tracked(steps, "layers at schemes", len(steps))

    with reporting(progress):
        return sensitivity(
            model.module, [inputs for inputs, _ in read], schemes, measure=_Measure(task, data, read), track=track
        )


class _Measure:
    """The task's score, and its loss, of outputs for the samples."""

    def __init__(self, task: Task, data: Data, samples: Sequence[tuple[Tensor, Tensor]]) -> None:
        self.task, self.data = task, data
        self.batches = [Batch(inputs, targets) for inputs, targets in samples]
        self.loss = Objective(task.loss).eval() if task.tested_by_loss else None

    def __call__(self, outputs: Sequence[Tensor]) -> dict[str, float]:
        score, loss, count = self.task.score(self.data.shape), 0.0, 0
        for output, batch in zip(outputs, self.batches, strict=True):
            score.add(output.numpy(), batch.target.numpy())
            count += len(batch.target)
            if self.loss is not None:
                with torch.no_grad():
                    value = self.loss(self.task.outputs(output, batch), self.task.targets(batch)).value
                loss += float(value) * len(batch.target)
        found = {self.task.metric.name: score.result()}
        return found if self.loss is None else {"loss": loss / count, **found}
