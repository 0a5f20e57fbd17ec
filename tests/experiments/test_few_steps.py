"""Objectives of few-step models: what each builds, layouts, targets and memories, and what is refused."""

import functools
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from commands import built, error_of_train, run, train

import diffax
from diffax import flow_maps, training
from diffax.pretrained import Units
from experiments.configs import default, smoke
from experiments.configs.objectives import FEW_STEPS
from experiments.model import Data
from experiments.models import objectives
from experiments.models.few_steps import Teacher, _progressive
from experiments.models.few_steps.parts import neighbours
from experiments.run import loading, sample_folder
from experiments.run.inputs import opened

FSDP = functools.partial(training.sharded, rule="fsdp")
HALVES = (slice(4), slice(4, 8))
SIZE, DATA = 8, Data((2, 2, 1), 3, Units())
TWO = {"second_time": True}
SETTINGS = {  # of config.network
    "mean_flow": TWO,
    "improved_mean_flow": TWO,
    "latent_consistency": {**TWO, "guidance_input": True},
    "lagrangian": TWO,
    "shortcut": TWO,
}


def config_of(name, *, network=(), **loss):
    """A small network with an objective; a teacher is named where one is needed."""
    config = default.get_config()
    config.dataset.batch_size = SIZE
    config.train.num_steps = 100
    config.network.update({"name": "mlp", "channels": 8, "depth": 1, "dropout_rate": 0.0, "time_scale": 1.0})
    config.network.update(SETTINGS.get(name, {}) | dict(network))
    config.loss.update({"objective": name, "p_uncond": 0.3, **loss})
    if name in FEW_STEPS and FEW_STEPS[name].teacher == "needed":
        config.teacher = config.init_from = "runs/teacher"
    if name in FEW_STEPS and FEW_STEPS[name].ends == "data":
        config.sampling.sampler, config.sampling.eta = (
            ("jump", 1.0) if config.network.second_time else ("consistency", None)
        )
    return config


def moved(params, key=1):
    """The parameters with noise, so that no layer is 0."""
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(key), len(leaves))
    noise = [0.3 * jax.random.normal(k, leaf.shape) for k, leaf in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(structure, [v + e for v, e in zip(leaves, noise, strict=True)])


@functools.cache
def teacher():
    model = built(config_of("denoising"), data=DATA)
    return Teacher(model.diffusion, moved(model.init(jax.random.key(0)), 2), 1, "digest")


def batch_of(size=SIZE):
    x = jnp.sin(jnp.arange(size * 4.0)).reshape(size, 2, 2, 1)
    return {"x": x, "label": jnp.arange(size) % 3, "index": np.arange(size, dtype=np.int32)}


def objective_of(config):
    model = built(config, data=DATA)
    return model, model.objective(teacher=teacher() if config.teacher else None)


def losses(config, *parts, step=30, batch=None):
    """Of a batch, and of each of its parts that one device holds."""
    model, objective = objective_of(config)
    params = moved(model.init(jax.random.key(0)))
    used = {name: {"ema": moved(params, 3), "step": jnp.asarray(step)}[name] for name in objective.uses}
    keys, memory = (
        jax.random.split(jax.random.key(0), SIZE),
        () if objective.update_memory is None else (objective.memory,),
    )

    @jax.jit
    def loss(batch, keys):
        result = objective.loss(params, batch, keys, *memory, **used)
        return result[0] if memory else result

    whole = batch or batch_of()
    results = [loss(*jax.tree.map(lambda v, p=part: v[p], (whole, keys))) for part in (slice(None), *parts)]
    return results if parts else results[0]


# ---------------------------------------------------------------------------------------------- each objective


@pytest.mark.parametrize("name", FEW_STEPS)
def test_losses_are_finite_and_do_not_depend_on_the_layout(name):
    whole, *parts = losses(config_of(name), *HALVES)
    assert whole.shape == (SIZE,)
    assert np.isfinite(whole).all()
    np.testing.assert_allclose(whole, jnp.concatenate(parts), rtol=2e-4)


def parts_of(config):
    """(schedule, network as a function of its condition, x, noise keys, condition, t) as the objective draws them."""
    model, _ = objective_of(config)
    params = moved(model.init(jax.random.key(0)))
    keys = jax.random.split(jax.random.key(0), SIZE)
    noise, time, drop = (diffax.random.fold_in(keys, i) for i in range(3))
    batch = batch_of()
    label = diffax.losses.drop_labels(drop, batch["label"], 3, p_uncond=0.3)
    distribution = objectives.make(model.loss.times, objectives.TIMES, model.diffusion)
    t = diffax.losses.training_times.draw(time, SIZE, distribution).t
    network = lambda label: model.diffusion.predict(params, label)
    return model.diffusion.schedule(), network, batch["x"], noise, label, t, distribution


def test_mean_flow_with_guidance_by_hand():
    """The draws of the objective, and eq. 19 of the paper; the velocity of a dropped label is that of the draw."""
    config = config_of("mean_flow", objective_parameters={"guidance": 2.0, "mixing": 0.5, "power": 0.0})
    config.schedule, config.prediction = {"name": "flow"}, "velocity"
    schedule, network, x0, noise, label, _, distribution = parts_of(config)
    t, s = flow_maps.pairs(diffax.random.fold_in(noise, 1000), SIZE, distribution, equal=0.75)
    assert 0 < (label == 3).sum() < SIZE
    assert 0 < (t == s).sum() < SIZE

    def rate(x, t, v):
        plain, null = network(label)(x, t, t), network(None)(x, t, t)
        guided = 2 * v + (1 - 2 - 0.5) * null + 0.5 * plain
        return jnp.where((label == 3).reshape(-1, 1, 1, 1), v, guided)

    options = {"rate": rate, "weight": lambda total: total}
    expected = flow_maps.mean_flow_loss(noise, network(label), schedule, "velocity", x0, t, s, **options)
    np.testing.assert_allclose(losses(config), expected, rtol=1e-4)


def test_a_teacher_gives_the_velocity():
    config = config_of("mean_flow", objective_parameters={"guidance": 1.5, "power": 0.0})
    config.teacher = "runs/teacher"
    schedule, network, x0, noise, label, _, distribution = parts_of(config)
    t, s = flow_maps.pairs(diffax.random.fold_in(noise, 1000), SIZE, distribution, equal=0.75)
    taught = teacher()

    def denoise(x, t):
        plain, null = (
            diffax.denoiser(taught.diffusion.predict(taught.params, c), schedule, "v")(x, t) for c in (label, None)
        )
        return null + 1.5 * (plain - null)

    velocity = flow_maps.velocity(denoise, schedule, "x0")
    options = {"rate": lambda x, t, v: velocity(x, t), "weight": lambda total: total}
    expected = flow_maps.mean_flow_loss(noise, network(label), schedule, "v", x0, t, s, **options)
    np.testing.assert_allclose(losses(config), expected, rtol=1e-3)


def test_shortcut_gives_one_example_of_four_the_loss_of_the_map():
    config = config_of("shortcut")
    schedule, network, x0, noise, label, t, _ = parts_of(config)
    others = np.arange(SIZE) % 4 != 0
    predict = lambda x, t: network(label[others])(x, t, jnp.maximum(t - 2.0**-7, 0.0))
    expected = diffax.denoising_loss(noise[others], predict, schedule, "v", x0[others], t[others])
    np.testing.assert_allclose(losses(config)[others], expected, rtol=1e-5)


def test_the_levels_of_consistency_double_and_its_weight_is_the_distance_of_the_levels():
    config = config_of("consistency", objective_parameters={"first": 4, "last": 16, "huber": 0.1})
    schedule, network, x0, noise, label, t, _ = parts_of(config)
    function = flow_maps.ending(flow_maps.flow_map(lambda x, t, s: network(label)(x, t), schedule, "v"))
    for step, count in ((0, 5), (33, 9), (99, 17)):
        grid = np.asarray(diffax.times.karras(schedule, count))[::-1]
        index = np.clip(np.searchsorted(grid, t) - 1, 0, count - 2)
        high, low = grid[index + 1], np.where(index == 0, 0.0, grid[index])
        ratio = jnp.exp(-schedule.log_snr(high) / 2) - jnp.exp(-schedule.log_snr(low) / 2)
        distance = flow_maps.pseudo_huber(0.1)
        expected = flow_maps.consistency_loss(noise, function, schedule, x0, high, low, distance=distance) / ratio
        np.testing.assert_allclose(losses(config, step=step), expected, rtol=1e-3)


def test_neighbours_are_entries_of_the_grid_around_t():
    schedule = diffax.Cosine()
    t, s = neighbours(schedule, jnp.array([0.05, 0.24, 0.3, 1.0]), "trailing", 4)
    np.testing.assert_allclose(t, [0.25, 0.25, 0.5, 1.0])
    np.testing.assert_allclose(s, [0.0, 0.0, 0.25, 0.75])
    grid = np.asarray(diffax.times.karras(schedule, 18))[::-1]
    t, s = neighbours(schedule, (jnp.arange(18) + 0.5) / 18, "karras", 18)
    np.testing.assert_allclose(t, grid, rtol=1e-6)
    np.testing.assert_allclose(s, [0.0, *grid[:-1]], rtol=1e-6)


def test_stages_end_with_the_training():
    """A measurement after the last step is in the last stage, and no teacher follows it."""
    stages = [tuple(map(int, _progressive._stage(jnp.asarray(step), 10, 4))) for step in range(11)]
    assert stages == [*[(0, 0)] * 3, (0, 1), *[(1, 0)] * 3, (1, 1), (2, 0), (2, 0), (2, 0)]
    whole = losses(config_of("easy_consistency"), step=100)
    assert np.isfinite(whole).all()


def test_times_at_the_ends_have_finite_losses():
    """Below the clip of log-SNR two times have one level."""
    for name in ("easy_consistency", "consistency", "consistency_distillation"):
        batch = {**batch_of(), "u": jnp.array([0.0, 1e-6, 1e-5, 1e-4, 0.5, 0.999, 0.999999, 1.0])}
        assert np.isfinite(losses(config_of(name), step=99, batch=batch)).all()


# ---------------------------------------------------------------------------------------------- targets and memories


def states(config, num_steps, objective=None):
    """The states after each step of a training on one batch."""
    model, objective = objective_of(config)
    optimizer = model.optimizer.make()
    step = jax.jit(
        training.train_step(
            objective.loss, optimizer, ema_decay=0.9, update_memory=objective.update_memory, uses=objective.uses
        )
    )
    state = training.init_state(jax.random.key(1), moved(model.init(jax.random.key(0))), optimizer, objective.memory)
    result = []
    for _ in range(num_steps):
        state, metrics = step(state, batch_of())
        assert metrics["finite"]
        result.append(state)
    return result


def test_progressive_distillation_changes_its_teacher_at_the_end_of_a_stage():
    config = config_of("progressive", objective_parameters={"num_steps": 2})
    config.train.num_steps = 6  # two stages of three steps
    history = states(config, 4)
    same = lambda a, b: all(np.array_equal(u, v) for u, v in zip(*map(jax.tree.leaves, (a, b)), strict=True))
    assert all(same(history[i].memory, teacher().params) for i in (0, 1))
    assert same(history[2].memory, history[1].ema)
    assert same(history[3].memory, history[2].memory)


def test_the_first_stage_of_progressive_distillation_follows_the_guided_teacher():
    config = config_of("progressive", objective_parameters={"num_steps": 2, "guidance": 2.0})
    config.train.num_steps = 6
    schedule, network, x0, noise, label, t, _ = parts_of(config)
    taught = teacher()

    def denoiser(params, weight):
        def denoise(x, t):
            plain, null = (
                diffax.denoiser(taught.diffusion.predict(params, c), schedule, "v")(x, t) for c in (label, None)
            )
            return null + weight * (plain - null)

        return denoise

    for step, weight, count in ((2, 2.0, 2), (3, 1.0, 1)):
        high = (jnp.floor(t * count) + 1) / count
        options = {"teacher": denoiser(taught.params, weight)}
        student, low = network(label), high - 1 / count
        expected = flow_maps.progressive_loss(noise, student, schedule, "v", x0, high, low, **options)
        np.testing.assert_allclose(losses(config, step=step), expected, rtol=1e-3)


@pytest.mark.slow_cases("shortcut")
@pytest.mark.parametrize("name", ["mean_flow", "shortcut"])
def test_a_step_is_the_same_on_one_device_and_on_eight(name):
    """pmap, FSDP and one device: a derivative in t; groups of examples and an EMA target."""
    model, objective = objective_of(config_of(name))
    size, optimizer = 32, model.optimizer.make()
    step = training.train_step(objective.loss, optimizer, ema_decay=0.9, uses=objective.uses)
    params = moved(model.init(jax.random.key(0)))
    result = []
    for form, count in ((training.data_parallel, 1), (training.data_parallel, 8), (FSDP, 8)):
        mesh = training.make_mesh(jax.devices()[:count])
        parallel = form(step, mesh)
        state = parallel.place(training.init_state(jax.random.key(1), jax.tree.map(jnp.copy, params), optimizer))
        for _ in range(2):
            state, metrics = parallel(state, jax.tree.map(np.asarray, batch_of(size)))
        result.append(jax.device_get((state.params, state.ema, metrics)))
    for other in result[1:]:
        for a, b in zip(*map(jax.tree.leaves, (result[0], other)), strict=True):
            np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-5)


# ---------------------------------------------------------------------------------------------- couplings and pairs


def test_given_pairs_are_the_other_end_of_the_paths():
    config = config_of("denoising")
    schedule, network, x0, noise, label, t, _ = parts_of(config)
    eps = jnp.cos(jnp.arange(SIZE * 4.0)).reshape(x0.shape)
    expected = diffax.denoising_loss(noise, network(label), schedule, "v", x0, t, eps=eps)
    np.testing.assert_allclose(losses(config, batch={**batch_of(), "eps": eps}), expected, rtol=1e-5)


def test_a_coupling_assigns_the_noise_among_neighbours():
    config = config_of("denoising", coupling="optimal_transport", coupling_size=4, network={"conditional": False})
    config.sampling.guidance = 1.0
    schedule, network, x0, noise, _, t, _ = parts_of(config)
    assign = diffax.losses.couplings.optimal_transport
    eps = jnp.concatenate([assign(noise[part], x0[part]) for part in (slice(4), slice(4, 8))])
    expected = diffax.denoising_loss(noise, network(None), schedule, "v", x0, t, eps=eps)
    whole, *parts = losses(config, *HALVES)
    np.testing.assert_allclose(whole, expected, rtol=1e-5)
    own = diffax.losses.couplings.independent(noise, x0)
    assert float(jnp.square(x0 - eps).sum()) < 0.98 * float(jnp.square(x0 - own).sum())
    np.testing.assert_allclose(whole, jnp.concatenate(parts), rtol=1e-5)


# ---------------------------------------------------------------------------------------------- refused


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("mean_flow", {"network.second_time": False}, "config.network.second_time must be True for mean_flow, got Fal"),
        ("progressive", {"network.second_time": True}, "config.network.second_time must be False for progressive, got"),
        ("progressive", {"init_from": ""}, "config.init_from must be config.teacher = 'runs/teacher' for progressive"),
        ("progressive", {"teacher": ""}, "config.teacher must be a workdir or an export for progressive, got ''"),
        ("shortcut", {"teacher": "runs/digits"}, "config.teacher must be empty for shortcut, got 'runs/digits'"),
        ("denoising", {"teacher": "runs/digits"}, "config.teacher must be empty for denoising, got 'runs/digits'"),
        ("consistency", {"prediction": "eps"}, "config.prediction must not be eps for consistency on cosine, where it"),
        (
            "denoising",
            {"network.second_time": True},
            "config.network.second_time must be False for denoising, got True",
        ),
        (
            "consistency",
            {"sampling.sampler": "ddim"},
            "config.sampling.sampler must be consistency or lcm for a network",
        ),
        (
            "latent_consistency",
            {"sampling.eta": 0.0},
            "config.sampling.eta must be 1 for latent_consistency, which learns jumps to the data, got 0.0",
        ),
        ("consistency_distillation", {"loss.times": "cosmap"}, "config.loss.times must be uniform for consistency_dis"),
        (
            "latent_consistency",
            {"sampling.guidance_rescale": 0.5},
            "guidance_rescale must be 0 for a network with guid",
        ),
        ("denoising", {"sampling.sampler": "jump"}, "config.sampling.sampler must not be 'jump' for a network without"),
        ("latent_consistency", {"network.guidance_input": False}, "config.network.guidance_input must be True for lat"),
        ("mean_flow", {"network.guidance_input": True}, "config.network.guidance_input must be False for mean_flow"),
        ("mean_flow", {"loss.spread": "stratified"}, "config.loss.spread must be independent for mean_flow, got 'str"),
        ("mean_flow", {"loss.times": "loss_aware"}, "config.loss.times must not be loss_aware for mean_flow"),
        ("denoising", {"network.time_scale": 0.0}, r"config.network.time_scale must be > 0, got 0.0"),
        ("denoising", {"loss.coupling": "sinkhorn"}, "config.loss.coupling must be one of independent, .*'sinkhorn'"),
        ("denoising", {"loss.coupling": "optimal_transport"}, "config.loss.coupling must be independent for a network"),
        ("mean_flow", {"loss.weighting": "min_snr"}, "config.loss.weighting must be target for mean_flow"),
        ("mean_flow", {"schedule": {"name": "learned"}}, "config.schedule.name must not be learned for"),
        ("mean_flow", {"network.name": "diffusers"}, "second_time must be False for diffusers"),
        ("denoising", {"dataset.pairs": "there", "dataset.flip": True}, "config.dataset.pairs must be empty with con"),
    ],
)
def test_settings_that_do_not_fit_an_objective(name, change, message):
    config = config_of(name)
    for path, value in change.items():
        *groups, key = path.split(".")
        target = functools.reduce(lambda node, group: node[group], groups, config)
        target[key] = value
    with pytest.raises(ValueError, match=message):
        built(config, data=DATA)


@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    [
        ("mean_flow", {"equal": 1.5}, r"equal must be in \[0, 1\], got 1.5"),
        (
            "mean_flow",
            {"ratio": 0.5},
            "config.loss.objective_parameters.ratio is no parameter of mean_flow; those are e",
        ),
        (
            "denoising",
            {"equal": 0.5},
            "config.loss.objective_parameters.equal is no parameter of denoising; those are n",
        ),
        ("consistency", {"first": 0}, "first must be an int >= 1, got 0"),
        ("consistency", {"first": 9, "last": 4}, "last must be at least first = 9, got 4"),
        ("consistency_distillation", {"num_levels": 1}, "num_levels must be an int >= 2, got 1"),
        ("consistency_distillation", {"solver": "rk4"}, "solver must be one of heun, ddim, got 'rk4'"),
        ("consistency_distillation", {"grid": "karas"}, "grid must be one of .*did you mean 'karras'"),
        ("latent_consistency", {"low": 5.0}, r"low must be in \[0, high = 3.0\], got 5.0"),
        ("easy_consistency", {"q": 1.0}, r"q must be in \(1, inf\), got 1.0"),
        ("progressive", {"num_steps": 6}, "num_steps must be a power of 2, got 6"),
        ("mean_flow", {"mixing": 0.5}, "mixing needs guidance as well, got 0.5 without it"),
        ("mean_flow", {"guidance": 1.0, "mixing": 1.0}, r"mixing must be in \[0, 1\), got 1.0"),
        ("consistency", {"guidance": 2.0}, "config.loss.objective_parameters must be without guidance for consistency"),
        ("consistency_distillation", {"distance": "lpips"}, "distance must be one of squared, huber, got 'lpips'"),
        ("consistency", {"huber": 0.0}, r"huber must be in \(0, inf\), got 0.0"),
        ("continuous_consistency", {"warmup": 0.0}, r"warmup must be in \(0, inf\), got 0.0"),
    ],
)
def test_parameters_of_an_objective_are_checked(name, parameters, message):
    with pytest.raises(ValueError, match=message):
        built(config_of(name, objective_parameters=parameters), data=DATA)


def test_groups_of_an_objective_stay_on_one_device():
    built(config_of("shortcut"), 2, DATA)
    with pytest.raises(
        ValueError, match=r"batch_size must have multiples of 4 examples on each device for .* got 8 on 4"
    ):
        built(config_of("shortcut"), 4, DATA)


def test_points_with_masks_have_no_objective_for_few_steps():
    with pytest.raises(ValueError, match=r"config.loss.objective must be denoising for .digits., whose points"):
        built(config_of("consistency"), data=DATA._replace(mask=(2,)))


# ---------------------------------------------------------------------------------------------- pairs of a model


def few(num_steps=2, **changes):
    """A small config of `experiments.train` on `flow`."""
    config = smoke.get_config()
    config.schedule, config.prediction = {"name": "flow"}, "velocity"
    config.network.update({"name": "mlp", "channels": 16, "depth": 1, "dropout_rate": 0.0})
    config.train.update({"num_steps": num_steps, "log_every": 1, "heldout_every": 0, "checkpoint_every": 100})
    for path, value in changes.items():
        group, _, key = path.partition("__")
        target = config[group] if key else config
        target[key or group] = value
    return config


@pytest.fixture(scope="module")
def flow_run(tmp_path_factory):
    """A run on `flow`, and its pairs."""
    folder = tmp_path_factory.mktemp("flow")
    train(few(), folder / "run")
    run(
        "sample",
        f"--checkpoint={folder / 'run'}",
        f"--out={folder / 'pairs'}",
        "--num=40",
        "--pairs",
        "--shard_size=30",
    )
    return folder


def test_pairs_are_samples_with_the_noise_that_they_were_drawn_from(flow_run):
    pairs = sample_folder.load_pairs(flow_run / "pairs")
    assert len(pairs) == 40
    trained = loading.load(flow_run / "run")
    diffusion, labels = trained.model.diffusion, jnp.array([pairs[i]["label"] for i in range(40)])
    eps = jnp.stack([pairs[i]["eps"] for i in range(40)])
    assert 0.9 < float(eps.std()) < 1.1
    times = diffusion.times(trained.params)
    denoise = diffusion.denoiser(trained.params, labels)
    start = diffusion.schedule()(times[0]).sigma * eps
    x0 = diffax.sample(jax.random.key(0), diffusion.sampler(), denoise, start, times)
    np.testing.assert_allclose(np.stack([pairs[i]["x"] for i in range(40)]), x0, atol=2e-4)


def test_a_run_trains_on_pairs(flow_run, tmp_path, capsys):
    """The first loss is that of the pairs' paths, which a straight line from eps to x0 makes 0 for an exact network."""
    folder = shutil.copytree(flow_run / "pairs", tmp_path / "pairs")
    config = few(dataset__pairs=str(folder), init_from=str(flow_run / "run"))
    inputs = opened(config, 1)
    batch = next(inputs.batches(None, cache_images=False, cache_latents=False))
    assert batch["eps"].shape == batch["x"].shape == (16, 8, 8, 1)
    pairs = sample_folder.load_pairs(folder)
    known = {pairs[i]["eps"].tobytes(): pairs[i]["x"] for i in range(40)}
    for eps, x in zip(batch["eps"], batch["x"], strict=True):
        np.testing.assert_array_equal(known[np.asarray(eps).tobytes()], x)
    train(config, tmp_path / "reflow")
    run(
        "sample",
        f"--checkpoint={flow_run / 'run'}",
        f"--out={folder}",
        "--num=50",
        "--pairs",
        "--shard_size=30",
    )
    assert "'length': 40} at step 2, got" in error_of_train(config, tmp_path / "reflow", capsys)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"dataset__pairs": "{folder}/run"},
            "config.dataset.pairs must be a folder of experiments.sample --pairs, got",
        ),
        ({"schedule": {"name": "cosine"}}, "config.dataset.pairs must be of schedule [[1.0, "),
        (
            {"network__conditional": False},
            "config.dataset.pairs must be of condition '', got {folder}/pairs of 'label'",
        ),
        ({"dataset__batch_size": 48}, "config.dataset.batch_size must be at most the 40 examples of the pairs, got 48"),
        (
            {"init_from": "{folder}/other"},
            "config.dataset.pairs must be drawn by the model of config.init_from, {folder}/other",
        ),
    ],
)
def test_pairs_that_do_not_fit_are_refused(flow_run, changes, message, tmp_path, capsys):
    if "init_from" in changes and not (flow_run / "other").exists():
        train(few(1, seed=3), flow_run / "other")
    text = lambda value: value.replace("{folder}", str(flow_run)) if isinstance(value, str) else value
    config = few(**{"dataset__pairs": "{folder}/pairs", **changes})
    for group, key in ((config.dataset, "pairs"), (config, "init_from")):
        group[key] = text(group[key])
    error = error_of_train(config, tmp_path / "reflow", capsys)
    assert text(message) in error
    assert not list((tmp_path / "reflow").glob("checkpoints/*"))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--sampler=ddpm"], "pairs must be False with ddpm, which draws noise, got True"),
        (["--eta=1.0"], "pairs must be False with ddim, which draws noise, got True"),
    ],
)
def test_pairs_need_a_sampler_without_noise(flow_run, flags, message, tmp_path, capsys):
    with pytest.raises(SystemExit):
        run("sample", f"--checkpoint={flow_run / 'run'}", f"--out={tmp_path / 'out'}", "--pairs", *flags)
    assert message in capsys.readouterr().err


# ---------------------------------------------------------------------------------------------- teachers


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"teacher": "{folder}/none"}, "config.teacher must be a run's workdir or an export, got {folder}/none"),
        (
            {"schedule": {"name": "cosine"}},
            "config.teacher must be of schedule [(1.0, ",
        ),
        ({"network__conditional": False}, "config.teacher must be of condition '', got {folder}/run of 'label'"),
        ({"network__channels": 8}, "config.teacher must have the network and the prediction of this run for progressi"),
        ({"prediction": "v"}, "config.teacher must have the network and the prediction of this run for progressive"),
        (
            {
                "loss__objective": "mean_flow",
                "loss__objective_parameters": {"guidance": 2.0},
                "network__second_time": True,
            }
            | {"teacher": "{folder}/without_null"},
            "config.teacher must be a model that can be guided, got {folder}/without_null without a null label",
        ),
        (
            {"teacher": "{folder}/consistency"},
            "config.teacher must be a denoiser, got {folder}/consistency, trained by con",
        ),
        ({"dataset__labels": (1, 2)}, "config.teacher must be of labels [1, 2], got {folder}/run of []"),
        ({"dataset__name": "mnist5k"}, "config.teacher must be of images (28, 28, 1), got {folder}/run of (8, 8, 1)"),
    ],
)
def test_teachers_that_do_not_fit_are_refused(flow_run, changes, message, tmp_path, capsys):
    text = lambda value: value.replace("{folder}", str(flow_run)) if isinstance(value, str) else value
    others = {
        "without_null": {"loss__p_uncond": 0.0},
        "consistency": {"loss__objective": "consistency", "sampling__sampler": "consistency"},
    }
    for name, own in others.items():
        if name in str(changes.get("teacher")):
            train(few(1, **own), flow_run / name)
    config = few(**{"loss__objective": "progressive", "teacher": "{folder}/run", **changes})
    config.teacher = config.init_from = text(config.teacher)
    assert text(message) in error_of_train(config, tmp_path / "student", capsys)


def test_a_distillation_that_was_interrupted_ends_with_the_same_bits(flow_run, tmp_path):
    """The memory of progressive distillation, the teacher of each stage, is in the checkpoints."""
    settings = {"loss__objective": "progressive", "loss__objective_parameters": {"num_steps": 2}}
    settings |= {"teacher": str(flow_run / "run"), "init_from": str(flow_run / "run"), "optimizer__decay": "constant"}
    settings |= {"optimizer__warmup_steps": 0}
    train(few(6, train__checkpoint_every=4, **settings), tmp_path / "whole")
    with pytest.MonkeyPatch.context() as patch:
        steps = training.fit

        def interrupted(*args, num_steps, **options):
            return steps(*args, num_steps=4, **options)

        patch.setattr(training, "fit", interrupted)
        train(few(6, train__checkpoint_every=4, **settings), tmp_path / "parts")
    train(few(6, train__checkpoint_every=4, **settings), tmp_path / "parts")
    params = [jax.tree.leaves(loading.load(tmp_path / name).params) for name in ("whole", "parts")]
    assert all(np.array_equal(a, b) for a, b in zip(*params, strict=True))
