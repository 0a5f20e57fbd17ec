"""Restoration of test images by each method for inverse problems, with a trained network.

    python -m experiments.benchmarks.inverse_images --checkpoint=runs/digits --workdir=runs/inverse --out=docs/inverse

Test images are masked, shrunk or blurred, and restored by `ddpm` with the network of a checkpoint, the image's label,
and the checkpoint's guidance and clipping. Every method of a task starts from the same noise. Finished rows stay in the
workdir; run the same command again to continue. --out receives NAME.json, NAME.md and NAME.png, where NAME is that of
the data set.

    residual    root mean square of y - A x0 over the measured entries, in units of [-1, 1]; std for a consistent x0
    PSNR        of the whole image, 10 log10(4 / mean square error), mean over the images
    largest     |x0|; data lie in [-1, 1]
    accuracy    share of the images that a classifier assigns to their label
    FD          Fréchet distance to training images in the classifier's features, at the same counts
    calls       of the denoiser, + products with the transpose of its Jacobian
    seconds     CPU time of all images without compilation

The last tables repeat the first task without guidance, without clipping, and with the method's x0 clipped in place of
the network's.

The loop over steps is a Python loop, and that of `mmps` is unrolled: XLA's CPU backend uses its fast convolution
kernels outside of loops only, so that a gradient inside `lax.scan` takes five times as long.
"""

import argparse
import dataclasses
import itertools
import json
import platform
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

import diffax
from diffax import inverse
from diffax._checks import choose
from experiments.data.datasets import open_dataset
from experiments.data.pictures import save_picture
from experiments.evaluation import comparison
from experiments.run.command import usage_errors
from experiments.run.loading import Trained, load
from experiments.run.workdir import read_json, write_json


class Task(NamedTuple):
    """y = A x0 + std n."""

    name: str
    operator: Any
    std: float


class Problem(NamedTuple):
    """The inputs of a method; arrays may be traced."""

    denoise: Any
    schedule: Any
    operator: Any
    y: Any
    std: Any


class Method(NamedTuple):
    """build(problem) -> (sampler, denoiser).

    products: products with the Jacobian's transpose in each call. project: whether the result is projected onto y.
    wraps_denoiser: whether the method's x0 can be clipped.
    """

    build: Callable[[Problem], tuple[Any, Any]]
    applies: Callable[[Task], bool] = lambda task: True
    products: int = 0
    wraps_denoiser: bool = True
    project: bool = False
    jumps: bool = False


class Setting(NamedTuple):
    """The guidance weight, and the bounds of the network's x0 and of the method's x0."""

    name: str
    guidance: float
    network: float
    result: float


def tasks(shape: tuple[int, ...], num: int) -> list[Task]:
    """The tasks for `num` images of shape (H, W, C)."""
    height, width, _ = shape
    upper = np.broadcast_to(np.arange(height)[:, None, None] < height // 2, (height, width, 1))
    half = np.random.default_rng(0).random((num, height, width, 1)) < 0.5
    return [
        Task("Upper half known", inverse.Mask(upper[None]), 0.0),
        Task("Half of the pixels known, at random", inverse.Mask(half), 0.0),
        Task("Half the resolution (means of 2 x 2)", inverse.BoxDownsample(2, shape), 0.0),
        Task("Gaussian blur of 1 pixel, noise of std 0.05", inverse.gaussian_blur(1.0, shape, radius=2), 0.05),
    ]


def settings(guidance: float) -> list[Setting]:
    """All settings, the checkpoint's first."""
    inf = float("inf")
    return [
        Setting("guided, clipped", guidance, 1.0, inf),
        Setting("unguided, clipped", 1.0, 1.0, inf),
        Setting("guided, not clipped", guidance, inf, inf),
        Setting("unguided, not clipped", 1.0, inf, inf),
        Setting("guided, result clipped", guidance, inf, 1.0),
    ]


def _of_denoiser(wrap, **more):
    return lambda p: (diffax.ddpm(p.schedule), wrap(p.denoise, p.schedule, p.operator, p.y, std=p.std, **more))


def _of_sampler(wrap):
    return lambda p: (wrap(diffax.ddpm(p.schedule), p.schedule, p.operator, p.y), p.denoise)


def _dps(scale):
    return lambda p: (inverse.dps(diffax.ddpm(p.schedule), p.operator, p.y, scale=scale), p.denoise)


def _diffpir(p):
    denoise = inverse.diffpir(p.denoise, p.schedule, p.operator, p.y, std=p.std)
    return inverse.renoising(p.schedule, zeta=0.5), denoise


def _masks(task):
    return isinstance(task.operator, inverse.Mask)


def _has_gain(task):
    return getattr(task.operator, "gain", None) is not None


METHODS = {
    "no measurement": Method(lambda p: (diffax.ddpm(p.schedule), p.denoise)),
    "replacement": Method(_of_sampler(inverse.replacement), _masks, wraps_denoiser=False, project=True),
    "repaint": Method(_of_sampler(inverse.repaint), _masks, wraps_denoiser=False, project=True, jumps=True),
    "dps": Method(_dps(1.0), products=1, wraps_denoiser=False),
    "ddnm": Method(lambda p: (diffax.ddpm(p.schedule), inverse.ddnm(p.denoise, p.operator, p.y))),
    "ddnm_plus": Method(
        lambda p: (inverse.ddnm_plus(p.schedule, p.operator, p.y, std=p.std), p.denoise),
        _has_gain,
        wraps_denoiser=False,
    ),
    "diffpir": Method(_diffpir),
    "pigdm": Method(_of_denoiser(inverse.pigdm), products=1),
    "mmps": Method(_of_denoiser(inverse.mmps), products=4),
    "mmps, 2 iterations": Method(_of_denoiser(inverse.mmps, iterations=2), products=2),
}


def plan(known: list[Task], guidance: float) -> list[tuple[Task, str, Setting]]:
    """(task, method, setting) of each row: all tasks in the checkpoint's setting, the first also in the others."""
    own, *others = settings(guidance)
    entries = [(task, name, own) for task in known for name, method in METHODS.items() if method.applies(task)]
    for name, method in METHODS.items():
        if name in ("no measurement", "repaint"):
            continue
        applicable = [setting for setting in others if method.wraps_denoiser or setting.result == float("inf")]
        entries += [(known[0], name, setting) for setting in applicable]
    return entries


# ---------------------------------------------------------------------- one row


def _unrolled(lower: int, upper: int, body: Callable, state: Any) -> Any:
    for i in range(lower, upper):
        state = body(i, state)
    return state


def compiled(method: Method, model: Trained) -> tuple[Callable, Callable]:
    """(step, last): (params, setting, label, (operator, y, std), ...) to the next state, and to x0."""
    diffusion = model.model.diffusion
    schedule = diffusion.schedule(model.params)

    def parts(params, setting, label, measured):
        guidance, network, result = setting
        # No clipping here: the bounds of the setting clip below.
        sampling = dataclasses.replace(diffusion.sampling, guidance=guidance, clip=False)
        denoise = dataclasses.replace(diffusion, sampling=sampling).denoiser(params, label)
        denoise = diffax.denoisers.clip_static(denoise, -network, network)
        sampler, denoise = method.build(Problem(denoise, schedule, *measured))
        return sampler, diffax.denoisers.clip_static(denoise, -result, result)

    @jax.jit
    def step(params, setting, label, measured, key, state, t, s):
        with mock.patch.object(jax.lax, "fori_loop", _unrolled):
            sampler, denoise = parts(params, setting, label, measured)
            return sampler.step(key, denoise, state, t, s)

    @jax.jit
    def last(params, setting, label, measured, state, t):
        with mock.patch.object(jax.lax, "fori_loop", _unrolled):
            return parts(params, setting, label, measured)[1](state.x, t)

    return step, last


def restore(functions, method, model, setting, label, measured, shape, num_steps):
    """(x0, calls, CPU seconds)."""
    step, last = functions
    schedule = model.model.diffusion.schedule(model.params)
    times = diffax.times.uniform_log_snr(schedule, num_steps)
    times = diffax.times.jumps(times, length=10, repeats=3) if method.jumps else times
    start, steps = jax.random.split(jax.random.key(0))
    state = diffax.samplers.State(diffax.initial_noise(start, schedule, shape, times[0]))
    bound = model.params, tuple(jnp.float32(v) for v in setting[1:]), label, measured
    times, spent = np.asarray(times), []
    for i, (t, s) in enumerate(itertools.pairwise(times)):
        before = time.process_time()
        state = step(*bound, jax.random.fold_in(steps, i), state, t, s)
        jax.block_until_ready(state.x)
        spent.append(time.process_time() - before)
    x0 = last(*bound, state, times[-1])
    if method.project:
        x0 = inverse.project(measured[0], measured[1], x0)
    down = np.diff(times) < 0
    seconds = float(np.mean(np.array(spent)[1:][down[1:]]) * (down.sum() + 1))  # the first step compiles
    return np.asarray(x0), int(down.sum()) + 1, seconds


def measure(x0: np.ndarray, truth: np.ndarray, labels: Any, task: Task, y: Any, case: Any) -> dict[str, float]:
    """The columns that depend on the result alone."""
    finite = np.nan_to_num(x0, nan=100.0, posinf=100.0, neginf=-100.0)
    off = np.asarray(y - task.operator.forward(finite), np.float64)
    seen = np.broadcast_to(np.asarray(task.operator.known), off.shape) if _masks(task) else np.ones(off.shape)
    square = np.square(finite.astype(np.float64) - truth).mean((1, 2, 3))
    pixels = case.dataset.units.denormalise(finite)
    scores = comparison.compare(case, pixels, labels).metrics
    return {
        "residual": float(np.sqrt(np.square(off).sum() / seen.sum())),
        "psnr": float(np.mean(10 * np.log10(4 / np.maximum(square, 1e-12)))),
        "largest": float(np.abs(finite).max()),
        "accuracy": scores.get("accuracy", float("nan")),
        "fd": scores["fd"],
    }


# ---------------------------------------------------------------------- the table


def _lines(rows: list[dict[str, Any]], first: str, seconds: bool) -> list[str]:
    heads = [first, "residual", "PSNR", "largest", "accuracy", "FD"] + ["calls", "CPU s"] * seconds
    lines = ["| " + " | ".join(heads) + " |", "| --- " * len(heads) + "|"]
    for row in rows:
        cells = [row[first], f"{row['residual']:.3f}", f"{row['psnr']:.1f}", f"{row['largest']:.3g}"]
        cells += [f"{row['accuracy']:.0%}", f"{row['fd']:.2f}"]
        if seconds:
            products = f" + {row['products']}" if row["products"] else ""
            cells += [f"{row['calls']}{products}", f"{row['seconds']:.0f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def report(rows: list[dict[str, Any]], conditions: dict[str, Any]) -> str:
    """The tables as markdown: one for each task, then settings on the first task."""
    own = rows[0]["setting"]
    lines = [
        f"# Test images of {conditions['data']}, restored",
        "",
        "Made by `python -m experiments.benchmarks.inverse_images`, whose docstring explains the columns: "
        f"{conditions['num']} test images, ddpm on {conditions['num_steps']} points of `uniform_log_snr` from "
        f"sigma / alpha = 80 to 0.02, guidance {conditions['guidance']:g}, x0 of the network clipped; "
        f"{conditions['machine']}. The images themselves have FD {conditions['fd_of_the_images']:.2f} and accuracy "
        f"{conditions['accuracy_on_the_images']:.0%}.",
    ]
    names = list(dict.fromkeys(row["task"] for row in rows))
    for name in names:
        chosen = [row for row in rows if row["task"] == name and row["setting"] == own]
        lines += ["", f"## {name}", "", *_lines(chosen, "method", True)]
    others = [row for row in rows if row["task"] == names[0]]
    lines += ["", f"## {names[0]}: guidance and clipping"]
    for method in dict.fromkeys(row["method"] for row in others):
        chosen = [row for row in others if row["method"] == method]
        if len(chosen) > 1:
            lines += ["", f"### {method}", "", *_lines(chosen, "setting", False)]
    return "\n".join(lines) + "\n"


def _stem(task: Task, name: str, setting: Setting) -> str:
    """The name of a row's files."""
    return "_".join(re.findall(r"[\w.]+", f"{task.name} {name} {setting.name}"))


def _balanced(labels: np.ndarray) -> np.ndarray:
    """An order of the examples in which the classes alternate."""
    before = [int((labels[:i] == label).sum()) for i, label in enumerate(labels)]
    return np.lexsort((labels, np.array(before)))


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, required=True, help="workdir of a run, or an export")
    parser.add_argument("--workdir", type=Path, required=True, help="finished rows")
    parser.add_argument("--out", type=Path, required=True, help="where the report goes")
    parser.add_argument("--tasks", type=int, nargs="*", help="only these tasks, 0 to 3: for several processes")
    parser.add_argument("--methods", nargs="*", help="only these methods; with no value, only report finished rows")
    parser.add_argument("--num", type=int, default=100, help="test images")
    parser.add_argument("--num_steps", type=int, default=50, help="grid entries, before RePaint's jumps")
    parser.add_argument("--classifier_file", type=Path, help="file of the classifier; trained and saved if missing")
    return parser.parse_args()


def main() -> None:
    """Restore, measure and report."""
    args = _parse()
    with usage_errors():
        for index in args.tasks or ():
            choose("tasks", str(index), ("0", "1", "2", "3"))
        for name in args.methods or ():
            choose("methods", name, METHODS)
        model = load(args.checkpoint.absolute())
        diffusion = model.model.diffusion
        if model.latents is not None or diffusion.condition != "label":
            raise ValueError(f"checkpoint must be a model of images with labels, got {args.checkpoint}")
        data = model.dataset
        truth, labels = open_dataset(data["name"], data["data_dir"]).arrays(data["test_split"])
        if not 2 <= args.num <= len(truth):
            raise ValueError(f"num must be between 2 and {len(truth)}, the number of test images, got {args.num}")
        order = _balanced(labels)[: args.num]
        truth, labels = truth[order], labels[order]
        how = comparison.Settings(metrics=("fd", "accuracy"), reference="train", classifier_file=args.classifier_file)
        case = comparison.open_case(data, labels, how, args.num)
    args.workdir.mkdir(parents=True, exist_ok=True)
    real = comparison.compare(case, case.dataset.units.denormalise(truth), labels)
    conditions = {
        "data": data["name"],
        "step": model.step,
        "num": args.num,
        "num_steps": args.num_steps,
        "guidance": diffusion.sampling.guidance or 1.0,
        "fd_of_the_images": real.metrics["fd"],
        "accuracy_on_the_images": real.metrics["accuracy"],
        "machine": f"{jax.devices()[0].device_kind}, {platform.machine()}, jax {jax.__version__}",
    }
    with usage_errors():
        if (previous := read_json(args.workdir / "conditions.json")) not in (None, conditions):
            raise ValueError(f"workdir must be new or contain rows of {conditions}, got {previous}")
    write_json(args.workdir / "conditions.json", conditions)

    # Run the selected rows that are not finished.
    known = tasks(model.data.shape, args.num)
    entries = plan(known, diffusion.sampling.guidance or 1.0)
    programs: dict[str, Any] = {}
    for task, name, setting in entries:
        path = args.workdir / f"{_stem(task, name, setting)}.json"
        chosen = args.tasks is None or any(task is known[i] for i in args.tasks)
        if path.exists() or not chosen or (args.methods is not None and name not in args.methods):
            continue
        method = METHODS[name]
        noise = np.random.default_rng(1).normal(size=truth.shape).astype(np.float32)
        y = task.operator.forward(truth)
        y = y + task.std * noise[: len(y), : y.shape[1], : y.shape[2]]
        functions = programs.setdefault(name, compiled(method, model))
        measured = task.operator, y, jnp.float32(task.std)
        how_restored = setting, jnp.asarray(labels), measured, truth.shape, args.num_steps
        x0, calls, seconds = restore(functions, method, model, *how_restored)
        row: dict[str, Any] = {"task": task.name, "method": name, "setting": setting.name}
        row |= measure(x0, truth, labels, task, y, case)
        row |= {"calls": calls, "products": calls * method.products, "seconds": seconds}
        np.save(path.with_suffix(".npy"), x0[:10])
        write_json(path, row)
        print(json.dumps(row), flush=True)

    # Report the finished rows.
    finished = [(entry, args.workdir / f"{_stem(*entry)}.json") for entry in entries]
    finished = [(entry, path) for entry, path in finished if path.exists()]
    rows = [read_json(path) for _, path in finished]
    args.out.mkdir(parents=True, exist_ok=True)
    write_json(args.out / f"{data['name']}.json", {"conditions": conditions, "rows": rows})
    (args.out / f"{data['name']}.md").write_text(report(rows, conditions))
    pictures = {"original": truth[:10]}
    for (task, name, setting), path in finished:
        if task is known[0] and setting is entries[0][2]:
            pictures[name] = np.load(path.with_suffix(".npy"))
    columns = np.stack(list(pictures.values()), 1)  # a row for each image, a column for each method
    path, x = args.out / f"{data['name']}.png", columns.reshape(-1, *model.data.shape)
    save_picture(path, x, model.data.units, len(pictures), list(pictures))


if __name__ == "__main__":
    main()
