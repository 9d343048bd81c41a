"""Few clusters from many: how the categories of a clustering auto-encoder start from groups of its fine categories.

A categorical auto-encoder with `num_fine_categories` and `fine_steps` teaches the fine ones alone at first. Then

```python
last_fine_step = find_last_fine_step(run)     # before the loop
if run.step == last_fine_step:                # at the end of a step of it
    start_categories(run, views)
```

looks for the groups of fine categories that keep the most information between an image and its view, and starts each
category as the mean of a group. No label is seen.
"""

import math
from collections.abc import Callable

import torch

from .data.images import to_pixel_values
from .models.losses import joint_mutual_information
from .training_images import ImageTrainingRun
from .training_parts import ImageBatch
from .training_run import TrainingError

MAX_IMAGES, BATCH_SIZE = 10_000, 1000  # of the joint distribution


def group_categories(
    joint: torch.Tensor, num_groups: int, generator: torch.Generator, num_restarts: int = 100, num_sweeps: int = 8
) -> torch.Tensor:
    """Groups of categories that keep the most mutual information: a local search from random groups.

    In each sweep every category in turn, in random order, moves to the group where the mutual information of the
    grouped joint distribution is highest.

    Args:
        joint: `(categories, categories)`, not negative: how often an image is in one category and its view in another.
            It is made symmetric and divided by its sum.
        num_groups: how many groups to look for.
        generator: on the CPU, of the random groups and orders.
        num_restarts: random groups to start from.  num_sweeps: of each.

    Returns:
        int64 `(categories,)` on the CPU: the group of each category, of the best start.
    """
    size = len(joint)
    joint = joint.to("cpu", torch.float64)
    joint = joint + joint.T
    joint = joint / joint.sum()
    starts, one_hot = torch.arange(num_restarts), torch.eye(num_groups, dtype=torch.float64)
    members = one_hot[torch.randint(num_groups, (num_restarts, size), generator=generator)]  # (starts, size, groups)
    for _ in range(num_sweeps):
        for category in torch.randperm(size, generator=generator):
            members[:, category] = 0
            without = members.mT @ joint @ members  # (starts, groups, groups)
            shared = members.mT @ joint[:, category]  # (starts, groups): with the category, which is in none of them
            # candidates (starts, group it joins, groups, groups): a row and a column more, and the category's own cell
            column = one_hot[:, None, :] * shared[:, None, :, None]
            own = joint[category, category] * one_hot[:, :, None] * one_hot[:, None, :]
            information = joint_mutual_information(without[:, None] + column + column.mT + own)
            members[starts, category] = one_hot[information.argmax(1)]
    best = joint_mutual_information(members.mT @ joint @ members).argmax()
    return members[best].argmax(1)


def find_last_fine_step(run: ImageTrainingRun) -> int:
    """The step of the run with which `fine_steps` of its model are over; 0 where there is none.

    Raises:
        TrainingError: the run is shorter.
    """
    fine_steps, passes = getattr(run.config, "fine_steps", 0), run.options.gradient_accumulation_steps
    if not fine_steps:
        return 0
    counted_before = int(run.network.training_steps.steps) - passes * run.step  # of the weights the run began with
    last = max(0, math.ceil((fine_steps - counted_before) / passes))
    if last >= run.max_steps:
        raise TrainingError(
            f"--fine_steps {fine_steps}: the run is over after {run.max_steps} steps, before the categories are "
            "taught. Lower it, or train longer"
        )
    return last


def start_categories(run: ImageTrainingRun, views: Callable[[ImageBatch], torch.Tensor]) -> None:
    """Start the categories of the run's model from groups of its fine ones, and their moments in the optimizer anew.

    The joint distribution is that of at most 10,000 training images. It depends on seed and step alone, up to rounding:
    every process takes its share of the images.

    Args:
        views: gives changed views of the images of a batch.
    """
    network, config = run.network, run.config
    seed = (run.options.seed, run.step, -1)  # batches of the step itself are numbered from 0
    whole = ImageBatch(pixel_values=torch.empty(0), rows=slice(0), global_size=0, seed=seed)
    chosen = torch.randperm(len(run.train), generator=whole.generator())[:MAX_IMAGES]
    index, world = run.accelerator.process_index, run.accelerator.num_processes
    joint = torch.zeros(config.num_fine_categories, config.num_fine_categories, dtype=torch.float64)
    with torch.no_grad(), run.accelerator.autocast():
        for number, rows in enumerate(chosen.split(BATCH_SIZE)):
            own = slice(len(rows) * index // world, len(rows) * (index + 1) // world)
            images = torch.from_numpy(run.train.images[rows[own].numpy()])
            pixel_values = to_pixel_values(images, run.device)
            batch = ImageBatch(pixel_values=pixel_values, rows=own, global_size=len(rows), seed=(*seed, number))
            joint += network.fine_joint(pixel_values, views(batch))
    if world > 1:
        joint = run.sum_over_processes(joint)
    groups = group_categories(joint, config.num_categories, whole.generator())
    network.group_fine_categories(groups.to(run.device))
    _start_moments(run)


def _start_moments(run: ImageTrainingRun) -> None:
    """As if the categories had always had the gradients of the fine ones; of a moving average what they are now."""
    own = slice(run.config.num_fine_categories, None)
    layer = run.network.encoder.output
    for parameter in (layer.weight, layer.bias):
        state = run.optimizer.state[parameter]
        state["exp_avg"][own] = 0
        state["exp_avg_sq"][own] = state["exp_avg_sq"][: own.start].mean()
        if run.average:
            [average] = [a for p, a in zip(run.average.parameters, run.average.averages, strict=True) if p is parameter]
            average[own] = parameter.detach()[own]
