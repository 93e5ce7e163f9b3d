"""What each of two processes runs in test_objective.py: its half of the batches, compared with all of them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch import distributed as dist

from subbyte.models.losses import Objective, Outputs, Targets, loss
from subbyte.models.losses.memory import Table, TableOf

STEPS, SAMPLES, WIDTH = 3, 6, 5


def part_of_two(rank: int, rendezvous: str) -> None:
    """The objective on the samples of process `rank`; what one process has for all of them was computed before."""
    torch.set_num_threads(1)
    loss("tabled", needs=("prediction", "ids"), source="test", memory={"last": TableOf("prediction", scalar=True)})(
        tabled
    )
    expected = run(slice(None))
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
    found = run(slice(rank, None, 2))
    for name, value in found.items():
        if name.startswith("memory"):
            torch.testing.assert_close(value, expected[name])
        else:  # Lightning averages gradients, and the log averages losses, over processes
            total = value.clone()
            dist.all_reduce(total)
            torch.testing.assert_close(total / 2, expected[name])
    dist.destroy_process_group()


def tabled(outputs: Outputs, targets: Targets, last: Table) -> Tensor:
    """squared distance from the prediction of the last epoch"""
    before = last.read(targets.ids)
    last.write(targets.ids, outputs.prediction)
    return (outputs.prediction - before) ** 2


def run(part: slice) -> dict[str, Tensor]:
    """Values and gradients of some steps, and the memory after them, of the samples `part` of each batch."""
    objective, queued = Objective("ce + 0.5*supcon + 0.1*clip").double(), Objective("moco(length=10) + tabled").double()
    encoder = torch.eye(WIDTH, dtype=torch.float64).requires_grad_()
    found: dict[str, Tensor] = {}
    for step in range(STEPS):
        outputs, targets = batch(step, encoder, part)
        if step == 0:
            queued.prepare(of_first_view(outputs), SAMPLES)
        value = objective(outputs, targets).value + queued(of_first_view(outputs), targets).value
        gradients = torch.autograd.grad(value, [encoder, *objective.parameters()])
        found[f"value {step}"] = value.detach()
        found.update({f"gradient {step} {index}": gradient for index, gradient in enumerate(gradients)})
    return found | {f"memory {name}": value for name, value in queued.state_dict().items()}


def of_first_view(outputs: Outputs) -> Outputs:
    teacher = Outputs(embeddings=outputs.teacher.embeddings[:, 0])
    return Outputs(embeddings=outputs.embeddings[:, 0], prediction=outputs.logits.sum(-1), teacher=teacher)


def batch(step: int, encoder: Tensor, part: slice) -> tuple[Outputs, Targets]:
    """A batch with 0, 1 and 3 rows left out: in the last step one process has none that counts."""
    generator = torch.Generator().manual_seed(step)
    views = torch.randn(SAMPLES, 2, WIDTH, generator=generator, dtype=torch.float64)[part] @ encoder
    keys = torch.randn(SAMPLES, 2, WIDTH, generator=generator, dtype=torch.float64)[part]
    label = torch.randint(0, 3, (SAMPLES,), generator=generator)[part]
    mask = torch.tensor([[True] * 6, [True] * 5 + [False], [True, False, True, False, True, False]])[step][part]
    weight = torch.rand(SAMPLES, generator=generator, dtype=torch.float64)[part]
    outputs = Outputs(views[:, 0, :3], embeddings=views, teacher=Outputs(embeddings=keys))
    ids = torch.randperm(SAMPLES, generator=generator)[part]
    return outputs, Targets(label, ids=ids, mask=mask, weight=weight)
