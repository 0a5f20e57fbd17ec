"""Run entry points inside the test process, and check configs as the entry points do."""

import functools
import importlib
import re
import sys

import jax
import optax
import pytest
from absl import flags

from diffax import training
from diffax.pretrained import Units
from experiments.configs import default, settings
from experiments.model import Data, build

DATA = {
    "digits": Data((8, 8, 1), 10, Units(range=(0.0, 16.0))),
    "mnist5k": Data((28, 28, 1), 10, Units()),
    "cifar10": Data((32, 32, 3), 10, Units()),
    "emoji": Data((32, 32, 3), 6, Units()),
}


def parse(line):
    """`flags.FLAGS(line)`, with the value "unused" for required flags of other commands imported in this process."""
    while True:
        try:
            return flags.FLAGS(line)
        except flags.IllegalFlagValueError as error:
            missing = re.match(r"flag --(\w+)=None: Flag --\1 must have a value other than None", str(error))
            if missing is None:
                raise
            line = [*line, f"--{missing[1]}=unused"]


flags.disclaim_key_flags()  # flags defined through this module belong to the module that calls it


@functools.cache
def imported(name):
    """(module, its flags) of a command. Commands define flags with equal names, so each gets its own `FlagValues`."""
    own, full_name = flags.FlagValues(), f"experiments.{name}"

    def defining(define):
        def wrapped(*args, **options):
            is_own = sys._getframe(1).f_globals["__name__"] == full_name
            return define(*args, **options, **({"flag_values": own} if is_own else {}))

        return wrapped

    with pytest.MonkeyPatch.context() as patch:
        for kind in ("string", "list", "integer", "bool", "float"):
            patch.setattr(flags, f"DEFINE_{kind}", defining(getattr(flags, f"DEFINE_{kind}")))
        module = importlib.import_module(full_name)
    if not flags.FLAGS.is_parsed():  # flags of other modules, such as --distributed
        flags.FLAGS.mark_as_parsed()
    return module, own


def run(name, *line):
    """Run a command: `main` of experiments.NAME with these flags."""
    module, own = imported(name)
    for flag in own:
        own[flag].unparse()
    module.main(own([name, *line]))


def train(config, workdir, devices=None, watch=lambda *_: []):
    """Run `experiments.train` with this config and return the workdir.

    Args:
      config: the config of the run.
      workdir: its folder.
      devices: number of devices; None for all.
      watch: replacement for `experiments.train.watch`; the default adds no callbacks.
    """
    module, _ = imported("train")
    mesh = training.make_mesh(jax.devices()[:devices])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module.settings, "load_config", lambda *_: config)
        patch.setattr(module.training, "make_mesh", lambda *_: mesh)
        patch.setattr(module, "watch", watch)
        run("train", "--config=unused", f"--workdir={workdir}")
    return workdir


class OpenedError(Exception):
    """Raised in place of the training loop of `experiments.train`, with the loop's batches and checkpoint record."""

    def __init__(self, batches, record):
        super().__init__()
        self.batches, self.record = batches, record


def opened(config, workdir):
    """Run `experiments.train` up to its loop and return the `OpenedError`."""
    module, _ = imported("train")

    def fit(step, state, batches, **options):
        raise OpenedError(batches, options["record"])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module.training, "fit", fit)
        with pytest.raises(OpenedError) as ended:
            train(config, workdir)
    return ended.value


def save_run(folder, config, params, step=1, data=DATA["digits"], **record):
    """Write a checkpoint as a run of this config writes it, and return the folder.

    Extra keywords add entries to the record or replace them. The parameters need not have been trained.
    """
    described = {"units": data.record()["units"], "shape": list(data.shape), "length": 997}
    nothing = dict.fromkeys(("latents", "adapters", "words"))
    identity = {"data": described, "autoencoder": None, "base": None}
    record = {"config": config.to_dict(), "data": data.record(), "identity": identity, **nothing, **record}
    with training.Checkpoints(folder / "checkpoints") as checkpoints:
        checkpoints.save(step, training.init_state(jax.random.key(0), params, optax.identity()), record)
    return folder


def error_of_train(config, workdir, capsys, status=2):
    """The error line of `experiments.train` for an invalid config."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        train(config, workdir)
    assert ended.value.code == status
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: ")
    return line


def built(config, num_devices=1, data=None):
    """The model of a config, after its keys, types and rules are checked."""
    settings.check_keys(config, default.get_config(), "config")
    settings.check_rules(config, num_devices)
    return build(config, data or DATA[config.dataset.name])
