"""The inputs of a training run, checked before anything compiles: data, latents, adapters, captions, model, batches."""

import functools
from typing import Any, NamedTuple

import jax
import numpy as np

from diffax import training
from diffax.pretrained import Tokenizer
from experiments.configs import settings
from experiments.configs.objectives import FEW_STEPS
from experiments.data import datasets, pipeline
from experiments.data.pairs import Pairs
from experiments.model import Data, build
from experiments.models import autoencoder, captions, latents, noisy_classifier
from experiments.models.adapters import Adapters
from experiments.models.few_steps import Teacher
from experiments.models.latents import Latents
from experiments.run import loading, teachers
from experiments.run.command import path_of
from experiments.run.warm_start import WarmStart

FORMS: dict[str, Any] = {  # config.parallel: the form of a step over devices
    "pmap": training.data_parallel,
    "jit": training.sharded,
    "fsdp": functools.partial(training.sharded, rule="fsdp"),
}


class Inputs(NamedTuple):
    """The inputs of a run.

    space: the latents that the model works in, None for pixels. base: adapters with their base, None where all
    parameters are trained. tokenizer: of captions, None without. model: as `build` returns it. read: settings of
    `pipeline.batches` -> batches of images. teacher: of config.teacher, None without one. pairs: of
    config.dataset.pairs, None without.
    """

    dataset: datasets.Dataset
    data: Data
    space: Latents | None
    base: Adapters | None
    tokenizer: Tokenizer | None
    model: Any
    read: Any
    teacher: Teacher | None = None
    pairs: Pairs | None = None

    def objective(self) -> Any:
        """The objective of the model."""
        return self.model.objective() if self.teacher is None else self.model.objective(teacher=self.teacher)

    def identity(self, train_split: str) -> dict[str, Any]:
        """The values, beside the config, that a continued run must have as well."""
        return {
            "data": self.dataset.describe(train_split),
            "autoencoder": self.space and self.space.identity(),
            "base": self.base and self.base.identity(),
            "teacher": self.teacher and self.teacher.identity(),
            "pairs": self.pairs and self.pairs.identity(),
        }

    def whole(self, params: Any) -> Any:
        """The parameters of the network, from those that are trained."""
        return params if self.base is None else self.base.merge(params)

    def describe(self, params: Any) -> str:
        """The data and the number of parameters, for a log line. params: trained parameters, or their shapes."""
        count = sum(leaf.size for leaf in jax.tree.leaves(params))
        whole = sum(leaf.size for leaf in jax.tree.leaves(self.base.params)) if self.base else count
        share = f" of adapters, {count / whole:.1%} of {whole:,}" if self.base else ""
        inside = f" in latents {'x'.join(map(str, self.space.shape))}" if self.space else ""
        data = f"{self.dataset.name} {'x'.join(map(str, self.data.shape))}{inside}{self._describe_condition()}"
        return f"{data}: {count:,} parameters{share}"

    def _describe_condition(self) -> str:
        """The array condition of the data, and the conditions that are not used, as text."""
        if self.data.condition is not None:
            unused = " (labels are not used)" if self.data.num_classes else ""
            return f" with condition {'x'.join(map(str, self.data.condition))}{unused}"
        return " (its conditions are not used)" if "condition" in self.dataset.builder.info.features else ""

    def check_start(self, start: WarmStart | None) -> None:
        """Raise `ValueError` unless the pairs were drawn by the model that the run starts from."""
        if start is not None and self.pairs is not None and start.digest != self.pairs.digest:
            raise ValueError(f"config.dataset.pairs must be drawn by the model of config.init_from, {start.folder}")

    def empty_batch(self, size: int) -> dict[str, np.ndarray]:
        """A batch with the shapes and types of those that are trained on."""
        shape, numbers = self.space.moments_shape if self.space else self.data.shape, np.empty(size, np.int32)
        batch = {"x": np.empty((size, *shape), np.float32), "label": numbers, "index": numbers}
        tokens = {"tokens": np.empty((size, self.tokenizer.max_length), np.int32)} if self.tokenizer else {}
        masks = {} if self.data.mask is None else {"mask": np.empty((size, *self.data.mask), bool)}
        shape_of = self.data.condition
        conditions = {} if shape_of is None else {"condition": np.empty((size, *shape_of), np.float32)}
        pairs = {"eps": batch["x"]} if self.pairs else {}
        return batch | tokens | masks | conditions | pairs

    def examples(self, split: str, limit: int, mesh: Any) -> dict[str, np.ndarray]:
        """Up to `limit` examples of a split, evenly spaced, as one batch; for a model in latents their moments."""
        records = self.dataset.source(split)
        rows = [records[int(i)] for i in np.linspace(0, len(records) - 1, min(limit, len(records)))]
        x = self.dataset.normalise(np.stack([row["x"] for row in rows]))
        batch = {"x": x if self.space is None else np.asarray(self.space.encoder(mesh)(x))}
        batch["label"] = np.stack([row["label"] for row in rows])
        if self.tokenizer is not None:
            batch["tokens"] = self.tokenizer.encode([row["caption"] for row in rows])
        if self.data.condition_units is not None:
            batch["condition"] = self.data.condition_units.normalise(np.stack([row["condition"] for row in rows]))
        return batch | ({"mask": np.stack([row["mask"] for row in rows])} if "mask" in rows[0] else {})

    def batches(self, mesh: Any, *, cache_images: bool, cache_latents: bool) -> Any:
        """The batches; for a model in latents with moments in place of images."""
        space, normalise = self.space, self.dataset.normalise
        if space is None:
            return self.read(cache=cache_images)
        if cache_latents:
            return self.read(instead=lambda records: space.encode_records(records, normalise, mesh))
        return latents.Encoded(self.read(cache=cache_images), space)


def opened(config: Any, num_devices: int) -> Inputs:
    """The inputs of a config.

    Raises:
      ValueError: for anything that is wrong with the settings, the data, or the models that they name.
    """
    settings.check_rules(config, num_devices)
    own = {"autoencoder": autoencoder.MEASURES, "classifier": noisy_classifier.MEASURES}.get(config.model, ())
    measures, best = ("loss", "grad_norm", *own), config.train.keep_best
    if best and best.removeprefix("-") not in measures:
        raise ValueError(f'config.train.keep_best must be "", or one of {", ".join(measures)} or -one, got {best!r}')
    names, space, base, tokenizer, words = config.dataset, None, None, None, None
    dataset = datasets.open_dataset(names.name, names.data_dir, names.labels)
    if config.latent.autoencoder:
        space = loading.load_latents(path_of("config.latent.autoencoder", config.latent.autoencoder))
        if space.model.shape != dataset.shape:
            raise ValueError(
                f"config.latent.autoencoder must be one of images {dataset.shape}, got {space.folder} of "
                f"{space.model.shape}"
            )
    if config.model != "diffusion" or not config.network.conditional:
        dataset = dataset._replace(condition=None, condition_units=None)  # neither read nor augmented
    of_condition = dataset.condition, dataset.condition_units
    data = Data(dataset.shape, dataset.num_classes, dataset.units, dataset.mask, dataset.class_names, *of_condition)
    model = build(config, data if space is None else data._replace(shape=space.shape))
    teacher = teachers.load_teacher(config.teacher, dataset, data, space, model) if config.teacher else None
    pairs = teachers.load_pairs(names.pairs, dataset, data, model) if names.pairs else None
    if jax.process_count() > 1 and (group := settings.group_size(config) // config.optimizer.accumulate) > 1:
        # Processes take turns in the examples of a batch, so the neighbours on a device would be others.
        name, coupling = config.loss.objective, config.loss.coupling
        if name in FEW_STEPS or coupling != "independent":
            raise ValueError(
                f"config.loss.objective must be one without groups on several processes, got groups of {group}"
            )
    if config.lora.base:
        base, trained = loading.load_adapters(config.lora)
        loading.check_base(config.to_dict(), trained, data, space)
        words = trained.tokenizer and trained.tokenizer.words
        with settings.at("config.lora"):
            jax.eval_shape(base.init, jax.random.key(0))
    if config.text.enabled:
        text = config.text
        tokenizer = captions.tokenizer(dataset, names.train_split, text.vocab_size, text.max_length, words)
    augment = pipeline.Augment(names.flip, names.crop, tuple(names.roll), names.rotate)
    augment.check(dataset.shape, dataset.units, dataset.condition)
    read = functools.partial(
        pipeline.batches,
        dataset,
        names.train_split,
        names.batch_size,
        seed=config.seed,
        augment=augment,
        num_threads=names.num_threads,
        share=(jax.process_index(), jax.process_count()),
        encode=tokenizer and tokenizer.encode,
        pairs=pairs,
    )
    read()  # raises for a split that is too small
    return Inputs(dataset, data, space, base, tokenizer, model, read, teacher, pairs)
