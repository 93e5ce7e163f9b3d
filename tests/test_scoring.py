"""A model is scored on its first output, by the task; one that is not of the task's shape is refused."""

from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

from subbyte.errors import UsageError
from subbyte.judge.scoring import ScoredData, recorded, scored_on
from subbyte.judge.verdict import Contender, judge
from subbyte.models import Data, get_task
from subbyte.models.tasks import Metric


def scored(task: str, shape: tuple[int, ...], target: torch.Tensor, outputs: int, **options: Any) -> ScoredData:
    one = TensorDataset(torch.zeros(len(target), *shape), target)
    data = Data("digits", one, one, shape, outputs)
    return ScoredData(get_task(task, **options), data, *data.test_arrays())


CLASSES = scored("classification", (1, 8, 8), torch.tensor([0, 9, 3]), 10)


@pytest.mark.parametrize("shape", [(1, 10), (1, 12), (0, 10), (0, 0)])
def test_logits_for_all_classes_can_be_scored(shape: tuple[int, ...]) -> None:
    CLASSES.refuse_unscorable("y", shape)


@pytest.mark.parametrize("shape", [(), (10,), (1, 4), (1, 9), (1, 10, 4)])
def test_anything_else_is_refused_with_what_to_do(shape: tuple[int, ...]) -> None:
    message = r"'y' of shape .* is not the \[N, 10\] of task 'classification' on data set 'digits': return that output"
    with pytest.raises(UsageError, match=message):
        CLASSES.refuse_unscorable("y", shape)


def test_each_task_says_which_output_it_scores() -> None:
    pixels = scored("segmentation", (1, 4, 6), torch.zeros(2, 4, 6, dtype=torch.int64), 3)
    pixels.refuse_unscorable("y", (1, 3, 4, 6))
    with pytest.raises(UsageError, match=r"mean iou is scored .* the \[N, 3, 4, 6\] of task 'segmentation'"):
        pixels.refuse_unscorable("y", (1, 3, 6, 4))
    near = scored("metric-learning", (3,), torch.tensor([0, 1]), 2, width=5)
    near.refuse_unscorable("y", (1, 5))
    with pytest.raises(UsageError, match=r"the \[N, 5\] of task"):
        near.refuse_unscorable("y", (1, 6))


def test_outputs_of_batches_are_scored_in_order() -> None:
    logits = np.eye(10, dtype=np.float32)[[0, 9, 4]]
    assert CLASSES.score([logits[:2], logits[2:]]) == pytest.approx(2 / 3)
    assert CLASSES.score([logits[:2]]) == 1
    assert CLASSES.chance() == pytest.approx(1 / 3)


def contender(name: str, score: float) -> Contender:
    return Contender(name, 1.0, 1.0, 1.0, 1.0, 10, score)


def test_the_better_score_is_that_of_the_metric() -> None:
    both = contender("subbyte", 1.25), contender("float", 1.5)
    assert judge(both, Metric("bits_per_byte", higher_is_better=False))[1] == ()
    sentences, warnings = judge(both[::-1], Metric("bits_per_byte", higher_is_better=False))
    assert "+0.25 bits per byte" in sentences[0]
    assert warnings == ("low-bit loses 0.25 bits per byte against subbyte",)
    assert judge(both, Metric("mean_iou", percent=True))[1] == ("low-bit loses 25.00 points of mean iou against float",)


def test_one_output_needs_no_mention() -> None:
    assert scored_on(["y"]) == ""
    assert scored_on(["y", "z"]) == "'y', the first of 2 outputs"


def test_metadata_that_was_changed_is_refused() -> None:
    assert recorded({"a": '{"b": 1}'}, "a") == {"b": 1}
    assert recorded({}, "a") == {}
    for text in ("[1]", "{", ""):
        with pytest.raises(UsageError, match="'a' is not a JSON object"):
            recorded({"a": text}, "a")
