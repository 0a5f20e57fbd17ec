"""How straight the paths of trained models are, and what one call costs in accuracy.

    python -m experiments.benchmark paths --checkpoints=runs/digits_flow,runs/digits_reflow

curvature: of 100 steps of Euler's method, `diffax.flow_maps.curvature`, in the time of the schedule `flow`. error: the
root mean square difference between the end of 1, 2 and 4 such steps and that of 100. All models start from the same
noise, with the guidance that they are sampled with, not clipped.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

import diffax
from experiments.models.drawing import labels_of
from experiments.run import loading
from experiments.run.command import launch, path_of, usage_errors

CHECKPOINTS = flags.DEFINE_list("checkpoints", None, "Workdirs or exports of models on `flow`.", required=True)
NUM = flags.DEFINE_integer("num", 512, "Paths of each model.", lower_bound=1)
STEPS = flags.DEFINE_integer("steps", 100, "Steps of the fine solution.", lower_bound=8)


def measure(trained, num, steps):
    """(curvature, errors of 1, 2 and 4 steps)."""
    diffusion = trained.model.diffusion
    diffusion = dataclasses.replace(diffusion, sampling=dataclasses.replace(diffusion.sampling, clip=False))
    schedule, classes = diffusion.schedule(), diffusion.num_classes if diffusion.condition == "label" else None
    labels = labels_of((), classes)
    condition = None if labels is None else jnp.asarray(labels[np.arange(num) % len(labels)])
    x = diffusion.noise(trained.params, jax.random.split(jax.random.key(0), num), 1.0)

    @jax.jit
    def path(params, x, times):
        denoise = diffusion.denoiser(params, condition)
        _, states = diffax.unroll(jax.random.key(0), diffax.ddim(schedule), denoise, x, times)
        return jnp.concatenate([x[None], states])

    fine = jnp.linspace(1.0, 0.0, steps + 1)
    whole = path(trained.params, x, fine)
    ends = [path(trained.params, x, jnp.linspace(1.0, 0.0, n + 1))[-1] for n in (1, 2, 4)]
    errors = [float(jnp.sqrt(jnp.mean(jnp.square(end - whole[-1])))) for end in ends]
    return float(diffax.flow_maps.curvature(whole, fine).mean()), errors


def main(argv):
    """Print a table row for each model."""
    del argv
    with usage_errors():
        models = [loading.load(path_of("checkpoints", name), "checkpoints") for name in CHECKPOINTS.value]
        for trained in models:
            if trained.record["config"]["schedule"]["name"] != "flow":
                raise ValueError(f"checkpoints must be models on the schedule flow, got {trained.folder}")
    print("| model | curvature | error of 1 call | of 2 | of 4 |\n| --- | --- | --- | --- | --- |")
    for name, trained in zip(CHECKPOINTS.value, models, strict=True):
        curvature, errors = measure(trained, NUM.value, STEPS.value)
        print(f"| {name} | {curvature:.4f} | {' | '.join(f'{error:.4f}' for error in errors)} |", flush=True)


def run():
    """The command."""
    launch(main)
