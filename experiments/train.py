"""Train a model: diffusion, the autoencoder of latents, or a classifier of noisy images, as config.model says.

    python -m experiments.train --config=digits --workdir=DIR [--config.KEY=VALUE ...]

The same command again continues from the last checkpoint, and a run that was killed ends with the same bits as one that
was not. SIGTERM or Ctrl-C finish the step, save, and exit with status 75. DIR receives config.json, metrics.jsonl,
checkpoints/, samples/*.png and, where tensorboardX is installed, tensorboard/; an autoencoder also leaves latents.json,
the standard deviation of its latents, for `--config.latent.autoencoder=DIR`.
"""

import contextlib
import functools

import jax
import numpy as np
from absl import flags

from diffax import random, training
from diffax.training import Every
from diffax.training.parallel import over_batch
from diffax.training.processes import check_equal, check_shared, is_first, on_all
from experiments.configs import settings
from experiments.data import pipeline
from experiments.data.pictures import Pictures
from experiments.models import adapters, autoencoder, captions, latents, noisy_classifier, samplers
from experiments.run import devices, distributed
from experiments.run.command import changes, launch, path_of, run_errors, usage_errors
from experiments.run.inputs import FORMS, opened
from experiments.run.workdir import claim, write_json

CONFIG = flags.DEFINE_string(
    "config", None, "The config: a file, or the name of one in experiments/configs.", required=True
)
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.", required=True)
SHOW = flags.DEFINE_bool("show_config", False, "Print the config with all changes, and end.")
flags.adopt_module_key_flags(distributed)

SAMPLE_ROWS = 8


def main(argv):
    """Open, build, restore, loop, end."""
    # ---------------------------------------------------------------- open: settings, data, other models, the folder
    distributed.start()
    mesh = training.make_mesh()
    with usage_errors():
        config = settings.load_config(CONFIG.value, changes(argv))
        workdir = path_of("workdir", WORKDIR.value)
        if SHOW.value:
            print(config)
            return
        # On all processes; an error of one is an error of all.
        inputs = on_all(lambda: opened(config, mesh.size))
        dataset, space, base, model = inputs.dataset, inputs.space, inputs.base, inputs.model
        identity = inputs.identity(config.dataset.train_split)
        check_equal(
            {
                "the config": config.to_dict(),
                "the workdir": str(workdir),
                "the number of devices": jax.local_device_count(),
                "the data": identity,
            }
        )
        # From here on the folder is locked by this run.
        on_all(lambda: claim(workdir, config.to_dict(), identity) if is_first() else None)
        check_shared(workdir)
        if config.train.compile_cache:
            devices.cache_compilations(workdir / "compile_cache")

        # ------------------------------------------------------------ build: batches, loss, optimiser, step, logs
        caches = {"cache_images": config.dataset.cache, "cache_latents": config.latent.cache}
        batches = inputs.batches(mesh, **caches)
    # The loss of each example, with its wrappers: codes in place of pixels, adapters in place of parameters.
    objective = adapters.wrap(base, latents.wrap(space, model.objective()))
    optimizer = model.optimizer.make()

    def first_state():
        init_key, state_key = jax.random.split(random.threefry(jax.random.key(config.seed)))
        params = (base or model).init(init_key)
        return training.init_state(state_key, params, optimizer, objective.memory)

    step = training.train_step(
        objective.loss,
        optimizer,
        ema_decay=model.optimizer.ema_decay,
        update_memory=objective.update_memory,
        accumulate=model.optimizer.accumulate,
    )
    shapes = jax.eval_shape(first_state)
    progress = training.Progress("step", config.train.num_steps, silent=not is_first())
    batch_size = config.dataset.batch_size
    kind, form = mesh.devices.flat[0].device_kind, config.parallel
    layout = f"{mesh.size} x {kind}, batch {batch_size // mesh.size} per device, {form}, jax {jax.__version__}"
    progress.message(f"{config.model} on {inputs.describe(shapes.params)}, {layout}")
    json_log, board = training.JsonLog(workdir / "metrics.jsonl"), training.TensorBoardLog(workdir / "tensorboard")
    pictures = Pictures(workdir, board, progress)
    flops = devices.flops_of_step(objective, shapes, inputs.empty_batch(batch_size), kind)
    record = {
        "config": config.to_dict(),
        "data": inputs.data._asdict(),
        "identity": identity,
        "latents": space and space.record(),
        "adapters": base and base.record(),
        "words": inputs.tokenizer and list(inputs.tokenizer.words),
    }

    # ---------------------------------------------------------------- restore and loop
    # `fit` restores the newest intact checkpoint. Each checkpoint_every steps, and at the end, it saves in the
    # background. On SIGTERM or Ctrl-C it finishes the step, saves, and raises `Stopped`, which exits with status 75.
    with run_errors(), contextlib.ExitStack() as stack:
        checkpoints = training.Checkpoints(
            workdir / "checkpoints",
            keep_latest=config.train.keep_latest,
            keep_every=config.train.keep_every,
            best=config.train.keep_best,
        )
        for resource in (checkpoints, json_log, board):
            stack.enter_context(contextlib.closing(resource))
        try:
            fitted = training.fit(
                FORMS[form](step, mesh),
                first_state,
                batches,
                num_steps=config.train.num_steps,
                checkpoints=checkpoints,
                checkpoint_every=config.train.checkpoint_every,
                log=training.Logs([json_log, board]),
                log_every=config.train.log_every,
                callbacks=watch(config, inputs, pictures, mesh),
                max_skipped=config.train.max_skipped,
                record=record,
                rates=functools.partial(devices.rates, batch_size, flops, list(mesh.devices.flat)),
                profile=training.Profile(config.train.profile, workdir / "profile"),
                progress=progress,
            )
        except training.NotFiniteError as error:
            length = identity["data"]["length"]
            rows = pipeline.places(length, batch_size, config.seed, error.step - 1)
            numbers = dataset.numbers(config.dataset.train_split)
            names = " ".join(str(numbers[row]) for row in rows)
            message = f"{error}; its batch has the records {names} of split {config.dataset.train_split!r}"
            raise training.NotFiniteError(message, error.step) from error

    # ---------------------------------------------------------------- end
    if config.model == "autoencoder":
        with usage_errors():
            images = dataset.images(config.dataset.train_split, autoencoder.TRAINING_IMAGES)
            params = jax.device_get(fitted.state.ema)
            content = autoencoder.measure_latents(model, params, images, fitted.step, mesh)
            if is_first():
                write_json(workdir / autoencoder.LATENTS, content)
                print(f"latents: standard deviation {content['std']:.4f} over {len(images)} training images")


def watch(config, inputs, pictures, mesh):
    """The callbacks: pictures each sample_every steps, measures with each checkpoint."""
    dataset, model, tokenizer = inputs.dataset, inputs.model, inputs.tokenizer
    each = {"sample_every": config.train.sample_every, "save_every": config.train.checkpoint_every}
    if config.model == "autoencoder":
        images = dataset.images(config.dataset.test_split, autoencoder.TEST_IMAGES)
        return autoencoder.callbacks(model, images, pictures, mesh, **each)
    if config.model == "classifier":
        images, labels = dataset.arrays(config.dataset.test_split)
        every = {"seed": config.seed, "save_every": each["save_every"]}
        return noisy_classifier.callbacks(model, images, labels, pictures, mesh, **every)

    # Samples: a column for each of 10 classes or captions, always from the same noise.
    columns = 10 if tokenizer else min(dataset.num_classes or 10, 10)
    condition = np.tile(np.arange(columns), SAMPLE_ROWS) if config.network.conditional else None
    if tokenizer is not None:
        texts = captions.examples(dataset, config.dataset.train_split, columns)
        condition = np.tile(tokenizer.encode(texts), (SAMPLE_ROWS, 1))
    keys = jax.random.split(jax.random.key(config.seed), columns * SAMPLE_ROWS)
    generate = over_batch(jax.jit(lambda params, *which: model.diffusion.generate(inputs.whole(params), *which)), mesh)
    generate = inputs.space.decoded(generate, mesh) if inputs.space else generate
    sampling, schedule = config.sampling, model.diffusion.schedule()
    samplers.report_rounding(sampling.sampler, schedule, sampling.num_steps)
    return [
        Every(
            each["sample_every"], lambda step, state: pictures.save(step, generate(state.ema, keys, condition), columns)
        )
    ]


if __name__ == "__main__":
    launch(main)
