"""Measures what the sampling loop costs beside the network in it.

    python -m experiments.benchmark --config=experiments/configs/digits.py

`sample` (steps, step arithmetic, noise, conversion of predictions) and a bare scan over the same number of calls
of the same network are timed in turn in one run. The overhead is the median over the pairs of
(sample - network) / network; one call each way is made first, so that no compilation is timed.
"""

import time

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from ml_collections import config_flags

import diffax
from experiments.data.datasets import open_dataset
from experiments.models import build, networks, samplers
from experiments.run import checks
from experiments.run.workdir import launch, usage_errors

CONFIG = config_flags.DEFINE_config_file("config", None, "The experiment's config file.", lock_config=True)
BATCH = flags.DEFINE_integer("batch_size", 200, "Samples drawn at a time.", lower_bound=1)
REPEATS = flags.DEFINE_integer("repeats", 11, "Pairs of timings.", lower_bound=1)
flags.mark_flag_as_required("config")


def seconds(f, *args):
    """Wall time of one call that is waited for."""
    start = time.perf_counter()
    jax.block_until_ready(f(*args))
    return time.perf_counter() - start


def functions(config, dataset, net, name):
    """(sample, network): both (params, keys, label) -> x, with equally many network calls, about num_steps."""
    with config.unlocked():
        config.sampling.update({"sampler": name, "guidance": 1.0, "eta": None})
    schedule, calls = build.schedule(config), config.sampling.num_steps
    times = jnp.linspace(1.0, 0.0, samplers.spent(name, schedule, samplers.entries(name, schedule, calls)))
    sample = build.generator(config, net, dataset.shape)

    @jax.jit
    def network(params, keys, label):
        x = diffax.initial_noise(keys, schedule, (len(keys), *dataset.shape))
        f = build.predict(config, net, params, label)
        return jax.lax.scan(lambda x, t: (f(x, t), None), x, times)[0]

    return sample, network


def main(argv):
    """Prints a line for each sampler."""
    del argv
    config = CONFIG.value
    with usage_errors():
        checks.check_config(config, 1)
        dataset = open_dataset(config.dataset.name, config.dataset.data_dir)
        net = networks.network(config, dataset.num_classes)
    params = build.init_params(config, net, dataset.shape, jax.random.key(0))
    keys = jax.random.split(jax.random.key(1), BATCH.value)
    label = jnp.arange(BATCH.value) % dataset.num_classes if config.network.conditional else None
    device, calls = jax.local_devices()[0].device_kind, config.sampling.num_steps
    print(f"{config.dataset.name}, {device}, jax {jax.__version__}: {BATCH.value} samples, {calls} calls, float32")
    print("sampler      network s   sample s   overhead (median of pairs)   [min, max]")
    for name in samplers.SAMPLERS:
        sample, network = functions(config, dataset, net, name)
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
