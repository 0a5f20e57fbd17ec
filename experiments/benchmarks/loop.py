"""Cost of the sampling loop beside the network in it.

    python -m experiments.benchmark --config=experiments/configs/digits.py

`sample` (steps, step arithmetic, noise, conversion of predictions) and a bare scan over the same number of calls
of the same network are timed in turn in one run. The overhead is the median over the pairs of
(sample - network) / network; an untimed call of each comes first, so that no compilation is timed.
"""

import dataclasses
import time

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

import diffax
from diffax.pretrained import entries, spent
from experiments.configs import settings
from experiments.data.datasets import open_dataset
from experiments.model import Data, build
from experiments.run.command import changes, launch, usage_errors

CONFIG = flags.DEFINE_string("config", None, "The config: a file, or the name of one.", required=True)
BATCH = flags.DEFINE_integer("batch_size", 200, "Samples drawn at a time.", lower_bound=1)
REPEATS = flags.DEFINE_integer("repeats", 11, "Pairs of timings.", lower_bound=1)


def seconds(f, *args):
    """Wall time of one call, including synchronisation."""
    start = time.perf_counter()
    jax.block_until_ready(f(*args))
    return time.perf_counter() - start


def functions(diffusion, name):
    """(sample, network): both (params, keys, label) -> x, with equally many network calls, about num_steps."""
    sampling = dataclasses.replace(diffusion.sampling, sampler=name, guidance=None, eta=None)
    diffusion, schedule = dataclasses.replace(diffusion, sampling=sampling), diffusion.schedule()
    times = jnp.linspace(1.0, 0.0, spent(name, schedule, entries(name, schedule, sampling.num_steps)))
    sample = jax.jit(lambda params, keys, label: diffusion.generate(params, keys, label))

    @jax.jit
    def network(params, keys, label):
        x = diffax.initial_noise(keys, schedule, (len(keys), *diffusion.shape))
        f = diffusion.predict(params, label)
        return jax.lax.scan(lambda x, t: (f(x, t), None), x, times)[0]

    return sample, network


def main(argv):
    """Print a line for each sampler."""
    with usage_errors():
        config = settings.load_config(CONFIG.value, changes(argv))
        settings.check_rules(config, 1)
        dataset = open_dataset(config.dataset.name, config.dataset.data_dir)
        diffusion = build(config, Data(dataset.shape, dataset.num_classes, dataset.units)).diffusion
    params = jax.jit(diffusion.init)(jax.random.key(0))
    keys = jax.random.split(jax.random.key(1), BATCH.value)
    label = jnp.arange(BATCH.value) % dataset.num_classes if config.network.conditional else None
    device, calls = jax.local_devices()[0].device_kind, config.sampling.num_steps
    print(f"{config.dataset.name}, {device}, jax {jax.__version__}: {BATCH.value} samples, {calls} calls, float32")
    print("sampler      network s   sample s   overhead (median of pairs)   [min, max]")
    for name in diffax.samplers.names():
        sample, network = functions(diffusion, name)
        args = (params, keys, label)
        seconds(sample, *args), seconds(network, *args)
        pairs = np.array([(seconds(network, *args), seconds(sample, *args)) for _ in range(REPEATS.value)])
        ratio = pairs[:, 1] / pairs[:, 0] - 1
        bare, full = np.median(pairs, axis=0)
        spread = f"[{ratio.min():+.2%}, {ratio.max():+.2%}]"
        print(f"{name:12s} {bare:9.3f} {full:10.3f}   {np.median(ratio):+26.2%}   {spread}", flush=True)


def run():
    """The command."""
    launch(main)
