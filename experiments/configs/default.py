"""Every setting there is, with its default. An experiment's config starts from this one and changes some.

A key that is not here, or a value of another type, is an error. The group `schedule` takes its schedule's own
parameters as further keys: `config.schedule = {"name": "linear", "beta_max": 25.0}`; the groups `..._parameters` take
those of the setting they are called after.
"""

import functools
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from diffax._checks import choose
from experiments.configs import objectives


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.seed = 0
    config.model = "diffusion"  # or "autoencoder", for latents; "classifier" of noisy images, for guidance
    config.init_from = ""  # a workdir, an export or a folder of diffusers: start from its parameters, where they fit
    config.teacher = ""  # a workdir or an export of a trained model, for objectives that learn from one
    config.parallel = "pmap"  # how a step is spread over devices: pmap, jit (the same by shardings), fsdp (a part each)

    config.dataset = ConfigDict()
    config.dataset.name = "digits"  # a TFDS data set prepared in data_dir, or an embedded one
    config.dataset.data_dir = ""  # "": $TFDS_DATA_DIR, else ~/tensorflow_datasets
    config.dataset.batch_size = 128  # over all devices
    config.dataset.train_split = "train"
    config.dataset.classifier_split = "test[:50%]"  # trains the classifier that evaluates
    config.dataset.test_split = "test[50%:]"  # what samples are compared with
    config.dataset.labels = ()  # the records with these labels alone; (): all
    config.dataset.flip = False  # mirror half of the examples along the last axis of space
    config.dataset.crop = 0  # shift by at most so many entries along each axis of space
    config.dataset.roll = ()  # axes of space, from 0, that are periodic: shift by any number of entries
    config.dataset.rotate = False  # rotate points about the origin
    config.dataset.pairs = ""  # reflow: a folder of `experiments.sample --pairs`, to train on its samples and noise
    config.dataset.cache = False  # keep the decoded split in memory
    config.dataset.num_threads = 2

    config.schedule = ConfigDict({"name": "cosine"})  # further keys: its parameters
    config.prediction = "v"  # x0, eps, score, v, velocity, edm
    config.sigma_data = 0.5  # standard deviation of the data in [-1, 1]; for edm

    config.network = ConfigDict()
    config.network.name = "unet"  # or "edm2", "dit", "mlp"; "diffusers": that of the folder init_from
    config.network.diffusers = ""  # the config.json of that folder, which is read into here
    config.network.channels = 32
    config.network.channel_multipliers = (1, 2)  # of the U-Nets, as the next two
    config.network.num_res_blocks = 2
    config.network.attention_levels = (1,)
    config.network.depth = 6  # of the DiT and the MLP; of the DiT the next two
    config.network.patch_size = 2  # 0: x is a set of points, without an order
    config.network.positions = "sincos"  # or rope, none
    config.network.num_heads = 1
    config.network.dropout_rate = 0.1
    config.network.conditional = True  # on the array condition of the data, else on the class
    config.network.time = "t"  # or "log_snr"; "timestep" for networks of diffusers
    config.network.time_scale = placeholder(float)  # of the embedding of t; None: 1000, and 25 for log_snr. Objectives
    # with a derivative in t (mean_flow, continuous_consistency) need a small one
    config.network.second_time = False  # a second time, for objectives of flow maps and the sampler jump
    config.network.guidance_input = False  # a guidance weight, for latent_consistency
    config.network.learned_variance = False  # a second output, for the losses hybrid and vlb
    config.network.dtype = "float32"  # what it computes in: float32, bfloat16
    config.network.remat = False  # computes activations again on the way back, to save memory

    config.text = ConfigDict()  # captions as the condition, in place of classes, by cross-attention
    config.text.enabled = False
    config.text.vocab_size = 1024  # tokens: padding, unknown, and the most frequent words of the training captions
    config.text.max_length = 16  # words of a caption that are read
    config.text.width = 128
    config.text.depth = 2
    config.text.num_heads = 4

    config.lora = ConfigDict()  # low-rank adapters of a trained model
    config.lora.base = ""  # workdir or export of that model; "": train all parameters
    config.lora.rank = 4
    config.lora.alpha = 4.0  # W + (alpha / rank) A B
    config.lora.patterns = ("*kernel",)  # globs on the paths of what is adapted

    config.latent = ConfigDict()  # diffusion in the latents of an autoencoder
    config.latent.autoencoder = ""  # workdir of a finished autoencoder; "": diffusion of pixels
    config.latent.cache = True  # encode the training split once and keep it in memory; else each batch as it comes

    config.autoencoder = ConfigDict()  # where config.model = "autoencoder"
    config.autoencoder.channels = 32
    config.autoencoder.channel_multipliers = (1, 2)  # each level after the first halves the size
    config.autoencoder.num_res_blocks = 1
    config.autoencoder.latent_channels = 4
    config.autoencoder.attention = True  # in the middle
    config.autoencoder.dtype = "float32"  # what it computes in: float32, bfloat16
    config.autoencoder.reconstruction = "squared"  # or "absolute"
    config.autoencoder.kl_weight = 1e-6  # where the reconstruction term is a sum over pixels

    config.loss = ConfigDict()
    config.loss.objective = "denoising"  # what follows; or hybrid, vlb (learned variance), vdm (a learned schedule);
    # or one for few steps, see experiments/models/few_steps: mean_flow, consistency, shortcut, progressive ...
    config.loss.objective_parameters = ConfigDict()  # of that objective for few steps: {"equal": 0.5}
    config.loss.coupling = "independent"  # of data and noise: or optimal_transport, without conditions
    config.loss.coupling_size = 64  # examples of a batch among which the noise is assigned
    config.loss.bin_width = 0.0  # of the data in [-1, 1], for the decoder of the bound: 2 / 16 for digits, 2 / 255
    config.loss.vlb_weight = 0.001  # of the bound in `hybrid`
    config.loss.learn_ends = False  # of the learned schedule in `vdm`
    config.loss.weighting = "target"  # plain mean square of what is predicted; "eps": weight 1 on the error of eps;
    # min_snr, truncated_snr, p2, edm, sigmoid, elbo: see diffax/losses/weightings.py
    config.loss.weighting_parameters = ConfigDict()  # of that weighting: {"gamma": 5.0}
    config.loss.times = "uniform"  # distribution of t: logit_normal, mode, cosmap, log_normal_sigma, loss_aware
    config.loss.times_parameters = ConfigDict()  # of that distribution: {"mean": -0.5}
    config.loss.spread = "independent"  # of the times of a batch: or stratified, antithetic
    config.loss.p_uncond = 0.1  # how often the label is dropped; > 0 for classifier-free guidance

    config.optimizer = ConfigDict()
    config.optimizer.name = "adamw"  # or "adafactor", "lion", "muon"
    config.optimizer.learning_rate = 1e-3
    config.optimizer.warmup_steps = 100
    config.optimizer.decay = "cosine"  # to 0 at num_steps, as "linear"; or "constant", "inverse_sqrt"
    config.optimizer.weight_decay = 0.0
    config.optimizer.b1 = 0.9
    config.optimizer.b2 = 0.99
    config.optimizer.clip_norm = 1.0
    config.optimizer.ema_decay = 0.995
    config.optimizer.accumulate = 1  # parts of a batch, one after another, to save memory

    config.train = ConfigDict()
    config.train.num_steps = 1600
    config.train.log_every = 100
    config.train.sample_every = 400
    config.train.heldout_every = 400  # the loss on test_split, by noise level; 0: never
    config.train.checkpoint_every = 400
    config.train.keep_latest = 2
    config.train.keep_every = 0  # 0: none beside the latest
    config.train.keep_best = ""  # the checkpoint with the lowest value of this metric ("-name": highest) is kept too
    config.train.max_skipped = 0  # steps in a row that may be left out since their loss or gradient is not finite
    config.train.compile_cache = True  # what was compiled is kept in the workdir
    config.train.profile = ()  # (first, last): steps to trace, into the workdir's profile/

    config.sampling = ConfigDict()  # what sample.py does unless a flag says otherwise
    config.sampling.sampler = "ddim"
    config.sampling.num_steps = 50  # denoiser calls; rounded down to what the sampler's steps can spend
    config.sampling.grid = "uniform_log_snr"  # those of experiments/models/samplers.py, as the samplers
    config.sampling.guidance = 1.0  # 1: none
    config.sampling.guidance_interval = (0.0, 1.0)  # of t: where guidance acts
    config.sampling.guidance_rescale = 0.0  # phi of Lin et al. 2024; 0: none
    config.sampling.eta = placeholder(float)  # of ddim and the stochastic samplers, tau of sa_solver, gamma of tcd;
    # None: the sampler's own default
    config.sampling.clip = True  # x0 to the data's range
    return config


# The smallest values of ints that a constructor does not check, or only after something else has compiled.
SMALLEST = {
    "dataset.batch_size": 1,
    "dataset.num_threads": 1,
    "network.num_res_blocks": 1,
    "network.num_heads": 1,
    "optimizer.accumulate": 1,
    "train.num_steps": 1,
    "train.log_every": 1,
    "train.sample_every": 1,
    "train.heldout_every": 0,
    "train.checkpoint_every": 1,
    "train.keep_latest": 1,
    "train.keep_every": 0,
    "train.max_skipped": 0,
}
SMALLEST_OF_TEXT = {"vocab_size": 3, "max_length": 1, "width": 4, "depth": 0, "num_heads": 1}
RATES = ("loss.p_uncond", "network.dropout_rate", "optimizer.ema_decay")
OF_DIFFUSION = {
    "latent.autoencoder": "",
    "lora.base": "",
    "text.enabled": False,
    "network.name": "unet",
    "teacher": "",
    "dataset.pairs": "",
    "loss.objective": "denoising",
    "loss.coupling": "independent",
}


def check_seed(seed: int) -> None:
    """Raise `ValueError` for a seed that is no int32 >= 0."""
    if not 0 <= seed < 2**31:
        raise ValueError(f"config.seed must be an integer {'>= 0' if seed < 0 else '< 2^31'}, got {seed}")


def check(config: ConfigDict) -> None:
    """Raise `ValueError` for settings that are out of range or exclude each other.

    Everything else is checked by the constructors that get the values (`experiments.model.build`).
    """

    def value_of(path: str) -> Any:
        return functools.reduce(getattr, path.split("."), config)

    def must(path: str, holds: bool, condition: str) -> None:
        if not holds:
            raise ValueError(f"config.{path} must {condition}, got {value_of(path)!r}")

    check_seed(config.seed)
    for path, least in SMALLEST.items():
        must(path, value_of(path) >= least, f"be >= {least}")
    for path in RATES:
        must(path, 0 <= value_of(path) < 1, "be in [0, 1)")
    choose("config.parallel", config.parallel, ("pmap", "jit", "fsdp"))
    choose("config.model", config.model, ("diffusion", "autoencoder", "classifier"))
    if config.model != "diffusion":
        for path, default in OF_DIFFUSION.items():
            must(path, value_of(path) == default, f"be {default!r} for config.model = {config.model!r}")

    # The objective, and what it needs.
    loss, network, text = config.loss, config.network, config.text
    objectives.check(config, must)
    objective = loss.objective
    is_bound, is_vdm, has_variance = objective in objectives.BOUNDS, objective == "vdm", objective in ("hybrid", "vlb")
    must("loss.bin_width", is_bound == (loss.bin_width > 0), f"be {'> 0' if is_bound else '0'} for {objective}")
    must("network.learned_variance", network.learned_variance == has_variance, f"be {has_variance} for {objective}")
    is_learned, verb = config.schedule.get("name") == "learned", "be" if is_vdm else "not be"
    must("schedule.name", is_learned == is_vdm, f"{verb} learned for config.loss.objective = {objective!r}")
    must("network.time", not is_vdm or network.time == "log_snr", "be log_snr for vdm")
    must("loss.vlb_weight", loss.vlb_weight >= 0, "be >= 0")
    if config.sampling.sampler == "ddpm_learned":
        without = "not be ddpm_learned without config.network.learned_variance"
        must("sampling.sampler", network.learned_variance, without)

    # Latents, captions, adapters.
    if config.latent.autoencoder:
        must("sampling.clip", not config.sampling.clip, "be False with latents, which have no range")
        must("loss.objective", not is_bound, "be denoising with latents")
        for name in ("flip", "crop", "roll", "rotate"):
            is_changed = bool(config.dataset[name]) and config.latent.cache
            must("latent.cache", not is_changed, f"be False with latents and config.dataset.{name}")
    if text.enabled:
        either = "be False with config.text.enabled: captions or classes"
        must("network.conditional", not network.conditional, either)
        must("network.name", network.name in ("unet", "dit"), "be unet or dit with config.text.enabled")
        for key, least in SMALLEST_OF_TEXT.items():
            must(f"text.{key}", text[key] >= least, f"be >= {least}")
        is_even = text.width % 2 == 0 and text.width % text.num_heads == 0
        must("text.width", is_even, "be even and a multiple of num_heads")
    if config.lora.base:
        must("lora.rank", config.lora.rank >= 1, "be >= 1")
        must("lora.alpha", abs(config.lora.alpha) < float("inf"), "be finite")
        must("lora.patterns", bool(config.lora.patterns), "name the matrices to adapt")
    must("autoencoder.kl_weight", config.autoencoder.kl_weight >= 0, "be >= 0")
