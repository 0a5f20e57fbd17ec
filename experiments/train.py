"""Train the model of config.model: diffusion, the autoencoder of latents, or a classifier of noisy images.

    python -m experiments.train --config=digits --workdir=DIR [--config.KEY=VALUE ...]

Run the same command again to continue from the last checkpoint; a killed and resumed run ends with the same bits as an
uninterrupted one. On SIGTERM or Ctrl-C the command finishes the step, saves, and exits with status 75; a second signal
ends it at once. DIR receives config.json, metrics.jsonl, checkpoints/, samples/*.png and, where tensorboardX is
installed, tensorboard/. An autoencoder also writes latents.json, the standard deviation of its latents, for
`--config.latent.autoencoder=DIR`.
"""

import contextlib
import functools

import jax
from absl import flags

from diffax import training
from diffax.training.parallel import gathered
from diffax.training.processes import check_equal, check_shared, is_first, on_all
from experiments.configs import settings
from experiments.data import pipeline
from experiments.data.pictures import Pictures
from experiments.models import adapters, autoencoder, latents, noisy_classifier, samplers
from experiments.run import devices, distributed, heldout, samples, warm_start
from experiments.run.command import changes, launch, path_of, run_errors, usage_errors
from experiments.run.inputs import FORMS, opened
from experiments.run.logs import by_name
from experiments.run.workdir import claim, write_json

CONFIG = flags.DEFINE_string(
    "config", None, "The config: a file, or the name of one in experiments/configs.", required=True
)
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.")
REPORT = flags.DEFINE_list("report_to", ["jsonl", "tensorboard"], "Logs: jsonl, tensorboard, wandb.")
SHOW = flags.DEFINE_bool("show_config", False, "Print the config with all changes, and exit.")
flags.adopt_module_key_flags(distributed)


def main(argv):
    """Open, build, restore, loop, end."""
    # ---------------------------------------------------------------- open: settings, data, other models, the folder
    with usage_errors():
        config = settings.load_config(CONFIG.value, changes(argv))
        if SHOW.value:
            print(config)
            return
        if WORKDIR.value is None:
            raise ValueError("workdir must be a folder for the run: --workdir=DIR")
        workdir = path_of("workdir", WORKDIR.value)
        logs = by_name(REPORT.value, workdir, config.to_dict())
    distributed.start()
    devices.use_cores(config.dataset.batch_size // settings.group_size(config))
    mesh = training.make_mesh()
    with usage_errors():
        # `on_all` raises on all processes if one process raises.
        inputs = on_all(lambda: opened(config, mesh.size))
        dataset, space, base, model = inputs.dataset, inputs.space, inputs.base, inputs.model
        identity = inputs.identity(config.dataset.train_split)
        shared = {"the config": config.to_dict(), "the workdir": str(workdir), "the data": identity}
        check_equal({**shared, "the number of devices": jax.local_device_count()})
        on_all(lambda: claim(workdir, config.to_dict(), identity) if is_first() else None)
        check_shared(workdir)
        start = on_all(lambda: warm_start.opened(config.init_from, config.model, workdir))
        inputs.check_start(start)
        if config.train.compile_cache:
            devices.cache_compilations(workdir / "compile_cache")

        # ------------------------------------------------------------ build: batches, loss, optimiser, step, logs
        batches = inputs.batches(mesh, cache_images=config.dataset.cache, cache_latents=config.latent.cache)
    # `space`: the latent space of the model, for which batches contain moments of codes; None for pixels. `base`: the
    # model whose adapters are trained, or None to train all parameters.
    objective = adapters.wrap(base, latents.wrap(space, inputs.objective()))

    def first_state():
        init, optimizer = (base or model).init, model.optimizer.make()
        # `memory` is the state of the loss between steps, such as the losses that loss-aware times depend on.
        return warm_start.first_state(config.seed, init, start, optimizer, memory=objective.memory)

    step = model.optimizer.step(objective)
    shapes = jax.eval_shape(first_state)
    progress = training.Progress("step", config.train.num_steps, silent=not is_first())
    batch_size = config.dataset.batch_size
    kind, form = mesh.devices.flat[0].device_kind, config.parallel
    core = " (one a core)" if kind == "cpu" and mesh.size > 1 else ""
    layout = f"{mesh.size} x {kind}{core}, batch {batch_size // mesh.size} per device, {form}, jax {jax.__version__}"
    progress.message(f"{config.model} on {inputs.describe(shapes.params)}, {layout}")
    if start is not None:
        with usage_errors():
            progress.message(start.describe(shapes.params))
    pictures = Pictures(workdir, logs, progress, inputs.data.units)
    flops = devices.flops_of_step(objective, shapes, inputs.empty_batch(batch_size), kind)
    record = {
        "config": config.to_dict(),
        "data": inputs.data.record(),
        "identity": identity,
        "latents": space and space.record(),
        "adapters": base and base.record(),
        "words": inputs.tokenizer and list(inputs.tokenizer.words),
    }

    # ---------------------------------------------------------------- restore and loop
    # `fit` restores the newest intact checkpoint and drops the log lines after it. On SIGTERM or Ctrl-C it finishes the
    # step, saves, and raises `Stopped`, which exits with status 75. A step whose loss or gradient is not finite is
    # skipped; more than max_skipped in a row raise `NotFiniteError`.
    with (
        run_errors(),
        training.Checkpoints(
            workdir / "checkpoints",
            keep_latest=config.train.keep_latest,
            keep_every=config.train.keep_every,
            best=config.train.keep_best,
        ) as checkpoints,
        contextlib.closing(logs),
    ):
        try:
            fitted = training.fit(
                FORMS[form](step, mesh),
                first_state,
                batches,
                num_steps=config.train.num_steps,
                checkpoints=checkpoints,
                checkpoint_every=config.train.checkpoint_every,
                log=logs,
                log_every=config.train.log_every,
                callbacks=watch(config, inputs, objective, pictures, workdir, mesh),
                max_skipped=config.train.max_skipped,
                record=record,
                rates=functools.partial(devices.rates, batch_size, flops, list(mesh.devices.flat)),
                profile=training.Profile(config.train.profile, workdir / "profile"),
                progress=progress,
            )
        except training.NotFiniteError as error:
            split = config.dataset.train_split
            numbers = pipeline.records_of_batch(dataset, split, batch_size, config.seed, error.step - 1)
            message = f"{error}; its batch has the records {' '.join(map(str, numbers))} of split {split!r}"
            raise training.NotFiniteError(message, error.step) from error

    # ---------------------------------------------------------------- end
    if config.model == "autoencoder":
        with run_errors():
            images = dataset.images(config.dataset.train_split, autoencoder.TRAINING_IMAGES)
            params = gathered(fitted.state.ema, mesh)
            content = autoencoder.measure_latents(model, params, images, fitted.step, mesh)
            if is_first():
                write_json(workdir / autoencoder.LATENTS, content)
                print(f"latents: standard deviation {content['std']:.4f} over {len(images)} training images")


def watch(config, inputs, objective, pictures, workdir, mesh):
    """The callbacks of a kind of model, after each sample_every or checkpoint_every steps and after the last one.

    diffusion: a picture of samples, the learning rate, the loss on held-out examples. autoencoder: a picture, and
    errors on test images with each checkpoint. classifier: the accuracy on test images with each checkpoint. All use
    the averaged parameters.
    """
    dataset, split, model = inputs.dataset, config.dataset.test_split, inputs.model
    sample_every, checkpoint_every = config.train.sample_every, config.train.checkpoint_every
    if config.model == "autoencoder":
        images = dataset.images(split, autoencoder.TEST_IMAGES)
        return autoencoder.callbacks(model, images, pictures, mesh, sample_every, checkpoint_every)
    if config.model == "classifier":
        arrays = dataset.arrays(split)
        return noisy_classifier.callbacks(model, *arrays, pictures, mesh, config.seed, checkpoint_every)

    schedule = model.optimizer.schedule()
    rate = training.Every(config.train.log_every, lambda step, state: {"learning_rate": float(schedule(step))})
    every = {"batch_size": config.dataset.batch_size, "seed": config.seed, "every": config.train.heldout_every}
    losses = heldout.measure(inputs, objective, split, workdir, mesh, pictures.message, **every)
    samplers.report_rounding(config.sampling.sampler, model.diffusion.schedule(), config.sampling.num_steps)
    every = {"seed": config.seed, "sample_every": sample_every}
    return [rate, *losses, samples.pictures_of(inputs, config.dataset.train_split, split, pictures, mesh, **every)]


if __name__ == "__main__":
    launch(main)
