"""A run whose input was checked: its data, its network, and what a continuation must find again."""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from diffax.training import make_mesh
from experiments.data.datasets import open_dataset
from experiments.data.pipeline import batches
from experiments.models import adapters as lora
from experiments.models import build, latents, networks
from experiments.models import captions as text
from experiments.models.loading import open_base
from experiments.run import checks, devices, distributed
from experiments.run.workdir import claim, usage_errors


class Run(NamedTuple):
    """A run whose input was checked.

    net: a Linen module. model: its kind, as the checkpoints name it. described: what a continuation must find again.
    tokenizer: of captions, None without. latents: where it diffuses, None for pixels.
    base: the `Model` that adapters are trained for, None where all parameters are.
    """

    config: Any
    workdir: Path
    dataset: Any
    data: Any
    net: Any
    mesh: Any
    model: str
    described: dict[str, Any]
    tokenizer: Any = None
    latents: Any = None
    base: Any = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Of what the network sees: an image, or its code."""
        return self.dataset.shape if self.latents is None else self.latents.shape

    @property
    def others(self) -> dict[str, Any]:
        """Of what it depends on beside its config and its data."""
        return {"autoencoder": self.latents and self.latents.identity(), "base": self.base and self.base.identity()}

    def init(self, key: Any) -> Any:
        """The first of the parameters that are trained."""
        if self.base is None:
            return build.init_params(self.config, self.net, self.shape, key)
        return lora.first(self.config, self.base.model.params, key)

    def whole(self, params: Any) -> Any:
        """The network's parameters, from those that are trained."""
        return params if self.base is None else lora.merge(self.config, self.base.model.params, params)


def checked(
    config: Any, mesh: Any, network: Callable, model: str, measures: Sequence[str] = ()
) -> tuple[Run, Callable]:
    """A run whose input is sound, without a folder yet, and `read(cache=)`, its batches of images.

    network: (config, number of classes) -> Linen module. measures: names of what the entrypoint measures itself, by
    which the best checkpoint may be chosen, beside loss and grad_norm.

    Raises:
      ValueError: for everything that can be wrong before anything compiles.
    """
    checks.check_config(config, mesh.size)
    checks.check_best(config, ("loss", "grad_norm", *measures))
    settings = config.dataset
    dataset = open_dataset(settings.name, settings.data_dir, settings.labels)
    checks.check_data(config, dataset)
    checks.check_model(config, model)
    space = latents.open_latents(config, dataset)
    shape = dataset.shape if space is None else space.shape
    networks.check_shape(config, shape)
    net = network(config, dataset.num_classes)
    base = open_base(config, dataset, space)
    tokenizer = text.tokenizer(config, dataset, base and base.model.words)
    read = functools.partial(
        batches,
        dataset,
        settings.train_split,
        settings.batch_size,
        seed=config.seed,
        flip=settings.flip,
        num_threads=settings.num_threads,
        share=(jax.process_index(), jax.process_count()),
        encode=tokenizer and tokenizer.encode,
    )
    data = read(cache=settings.cache and space is None)
    jax.eval_shape(lambda key: build.init_params(config, net, shape, key), jax.random.key(0))
    if base is not None:
        jax.eval_shape(lambda key: lora.first(config, base.model.params, key), jax.random.key(0))
    run = Run(config, Path(), dataset, data, net, mesh, model, {}, tokenizer, space, base)
    return run._replace(described=_data(dataset, config) | run.others), read


def with_latents(run: Run, read: Callable) -> Run:
    """The run with the codes of its images for batches, where it is one of latents."""
    if run.latents is None:
        return run
    return run._replace(data=latents.batches(run.latents, read, run.dataset, run.mesh, run.config))


def prepare(config: Any, workdir: Path, network: Callable, model: str, measures: Sequence[str] = ()) -> Run:
    """`checked` on all processes, in a folder that is this run's; what is wrong is one line and exit status 2."""
    mesh = make_mesh()
    with usage_errors():
        run, read = distributed.together(lambda: checked(config, mesh, network, model, measures))
        distributed.agree(
            {
                "the config": config.to_dict(),
                "the workdir": str(workdir),
                "the number of devices": jax.local_device_count(),
                "the data": run.described,
            }
        )
        mine = functools.partial(claim, workdir, config, model=model, **run.others)
        distributed.together(lambda: mine() if distributed.is_first() else None)
        distributed.see_the_same(workdir)
    if config.train.compile_cache:
        devices.cache_compilations(workdir / "compile_cache")
    with usage_errors():
        return with_latents(run._replace(workdir=workdir), read)


def describe(run: Run, params: Any) -> str:
    """The line that says what is being trained on what."""
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    size, kind = run.mesh.size, run.mesh.devices.flat[0].device_kind
    whole = sum(leaf.size for leaf in jax.tree.leaves(run.base.model.params)) if run.base else count
    share = f" of adapters, {count / whole:.1%} of {whole:,}" if run.base else ""
    inside = "" if run.latents is None else f" in latents {'x'.join(map(str, run.shape))}"
    return (
        f"{run.model} on {run.config.dataset.name} {'x'.join(map(str, run.dataset.shape))}{inside}: "
        f"{count:,} parameters{share}, "
        f"{size} x {kind}, batch {run.config.dataset.batch_size // size} per device, "
        f"{run.config.parallel}, jax {jax.__version__}"
    )


def _data(dataset, config):
    return {
        "range": [dataset.low, dataset.high],
        "shape": list(dataset.shape),
        "length": len(dataset.source(config.dataset.train_split)),
    }
