"""Tasks: what a batch is, how a forward becomes what losses read, and what a network is scored with.

    get_task("forecasting").check(data)

A file of this folder is found by itself: importing the package registers the tasks of every one.
"""

from importlib import import_module
from pkgutil import iter_modules

from subbyte.models.tasks.base import Batch, Episode, Task
from subbyte.models.tasks.register import get_task, list_tasks, task
from subbyte.models.tasks.score import Metric, Score

for _module in iter_modules(__path__, f"{__name__}."):
    import_module(_module.name)

__all__ = ["Batch", "Episode", "Metric", "Score", "Task", "get_task", "list_tasks", "task"]
