"""Checkpoints: the steps that are kept and restored; damaged steps are not restored."""

import dataclasses
import math
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_training import batch_of, make

from diffax import training
from diffax.training import CheckpointError, Checkpoints
from diffax.training.manifest import MANIFEST


def state_at(step):
    """A state whose arrays hold the number of its step."""
    state = training.init_state(jax.random.key(0), {"w": jnp.full((8, 16), float(step))}, optax.adam(0.1))
    return dataclasses.replace(state, step=jnp.int32(step))


def restore_newest(folder):
    """(step, skipped) as a new run restores them; checks that the arrays are those of the step."""
    with Checkpoints(folder) as checkpoints:
        latest = checkpoints.restore_latest(state_at(0))
    assert int(latest.state.step) == latest.step
    np.testing.assert_array_equal(latest.state.params["w"], np.full((8, 16), float(latest.step)))
    np.testing.assert_array_equal(latest.state.ema["w"], np.full((8, 16), float(latest.step)))
    return latest.step, list(latest.skipped)


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory):
    """A folder of checkpoints with the steps 1 and 2."""
    folder = tmp_path_factory.mktemp("two")
    with Checkpoints(folder) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, state_at(step), {"at": step})
    return folder


def copy_of(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "copy")
    return tmp_path / "copy"


def test_a_flipped_bit_is_never_restored(two_steps, tmp_path, request):
    """A bit flips anywhere in the files of the newest step: the previous step is restored and the file is named."""
    files = sorted(path for path in (two_steps / "2").rglob("*") if path.is_file() and path.stat().st_size)
    ends = np.cumsum([path.stat().st_size for path in files])
    rng = random.Random(0)
    with Checkpoints(two_steps, read_only=True) as checkpoints:
        for _ in range(request.config.getoption("--flips")):
            position = rng.randrange(int(ends[-1]))
            index = int(np.searchsorted(ends, position, side="right"))
            path, offset = files[index], position - int(ends[index]) + files[index].stat().st_size
            original = path.read_bytes()
            flipped = bytearray(original)
            flipped[offset] ^= 1 << rng.randrange(8)
            path.write_bytes(flipped)
            step, skipped = checkpoints.newest()
            path.write_bytes(original)
            assert step == 1
            assert skipped[0].step == 2
            assert path.name in skipped[0].reason
        assert checkpoints.newest() == (2, [])


def damages(folder):
    """Functions that each remove, truncate or replace one part of a checkpoint."""
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        yield path.unlink
        if path.stat().st_size:
            yield lambda path=path: os.truncate(path, path.stat().st_size // 2)
            yield lambda path=path: os.truncate(path, 0)
    yield lambda: (shutil.rmtree(folder), folder.mkdir())
    yield lambda: (shutil.rmtree(folder), folder.mkdir(), (folder / MANIFEST).mkdir())


def test_every_lost_part_is_detected(two_steps, tmp_path):
    """The previous step is restored; without an intact step CheckpointError is raised."""
    original = copy_of(two_steps, tmp_path)
    count = sum(1 for _ in damages(original / "2"))
    assert count > 20
    folder = tmp_path / "damaged"
    for index in range(count):
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(original, folder)
        list(damages(folder / "2"))[index]()
        with Checkpoints(folder, read_only=True) as checkpoints:
            step, skipped = checkpoints.newest()
        assert (step, [s.step for s in skipped]) == (1, [2])
    shutil.rmtree(folder / "1")
    with Checkpoints(folder) as checkpoints, pytest.raises(CheckpointError, match=f"is intact: step 2: {MANIFEST}"):
        checkpoints.restore_latest(state_at(0))


def test_a_stray_folder_is_not_a_step(two_steps, tmp_path):
    """An empty folder is not restored, displaces no intact step, and is renamed."""
    folder = copy_of(two_steps, tmp_path)
    (folder / "9").mkdir()
    (folder / "notes").mkdir()
    step, skipped = restore_newest(folder)
    assert (step, skipped[0].step) == (2, 9)
    assert (folder / "unsound-9").is_dir()
    with Checkpoints(folder) as checkpoints:
        checkpoints.save(9, state_at(9), {})
    assert restore_newest(folder) == (9, [])
    assert (folder / "notes").is_dir()


def test_a_damaged_step_can_be_saved_again(two_steps, tmp_path):
    folder = copy_of(two_steps, tmp_path)
    (folder / "2" / MANIFEST).write_text("{}")
    assert restore_newest(folder)[0] == 1
    with Checkpoints(folder) as checkpoints:
        checkpoints.save(2, state_at(2), {})
    assert restore_newest(folder) == (2, [])


def test_the_best_is_kept_and_a_nan_is_not_the_best(tmp_path):
    losses = {1: 3.0, 2: 1.0, 3: math.nan, 4: 2.0, 5: 5.0}
    for best, steps in (("loss", [2, 5]), ("-loss", [5]), ("other", [5])):
        with Checkpoints(tmp_path / best, keep_latest=1, best=best) as checkpoints:
            for step, loss in losses.items():
                checkpoints.save(step, state_at(step), {}, {"loss": loss})
        assert checkpoints.steps == steps, best


def test_the_best_step_is_chosen_by_the_current_metric(tmp_path):
    """The loss of an earlier step is not compared with an accuracy."""
    for step, (best, metrics) in enumerate(
        [("loss", {"loss": 3.0}), ("-acc", {"acc": 0.9}), ("-acc", {"acc": 0.6})], 1
    ):
        with Checkpoints(tmp_path, keep_latest=1, best=best) as checkpoints:
            checkpoints.save(step, state_at(step), {}, metrics)
    assert checkpoints.steps == [2, 3]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda s: {"params": {"w": s.params["w"].astype(jnp.bfloat16)}},
            r"\['w'\] = bfloat16\[8,16\], got float32\[8,16\]",
        ),
        (lambda s: {"params": {"w": jnp.ones((8, 4))}}, r"= float32\[8,4\], got float32\[8,16\]"),
        (lambda s: {"params": {}}, r"\['params'\]\['w'\] = nothing, got float32"),
        (lambda s: {"memory": jnp.ones(2)}, r"\['memory'\] = float32\[2\], got nothing"),
        (lambda s: {"key": jax.random.key(0, impl="rbg")}, r"\['key'\] = key<rbg>\[\], got key<fry>\[\]"),
    ],
)
def test_another_state_is_refused_and_the_difference_is_shown(change, message, two_steps):
    like = dataclasses.replace(state_at(0), **change(state_at(0)))
    with Checkpoints(two_steps, read_only=True) as checkpoints, pytest.raises(ValueError, match=message):
        checkpoints.restore_latest(like)


def test_a_failed_save_raises_and_the_previous_step_is_kept(two_steps, tmp_path, monkeypatch):
    """A save fails at once or in the background, and the next call raises; once there is space, the save succeeds."""
    folder = copy_of(two_steps, tmp_path)

    def attempt(checkpoints):
        checkpoints.save(3, state_at(3), {})
        checkpoints.wait()

    with Checkpoints(folder) as checkpoints:
        for target in ("diffax.training.checkpoints.ocp.save_async", "diffax.training.manifest._digest"):
            with monkeypatch.context() as patch:

                def no_space(*args):
                    raise OSError(28, "No space left on device")

                patch.setattr(target, no_space)
                with pytest.raises(CheckpointError, match=r"step 3 could not be saved, step 2 is kept: .*No space"):
                    attempt(checkpoints)
            assert sorted(path.name for path in folder.iterdir()) == ["1", "2"]
        attempt(checkpoints)
    assert restore_newest(folder) == (3, [])


SAVER = """
import sys, os
sys.path.insert(0, sys.argv[2])
import numpy as np, jax, jax.numpy as jnp, optax
from diffax import training
import dataclasses
def state_at(step):
    state = training.init_state(jax.random.key(0), {"w": jnp.full((512, 512), float(step))}, optax.adam(0.1))
    return dataclasses.replace(state, step=jnp.int32(step))
def run():
    with training.Checkpoints(sys.argv[1]) as checkpoints:
        latest = checkpoints.restore_latest(state_at(0))
        first = 0 if latest is None else latest.step
        if latest is not None:
            assert (np.asarray(latest.state.params["w"]) == first).all() and int(latest.state.step) == first
            assert (np.asarray(latest.state.opt_state[0].mu["w"]) == 0).all()
        print("from", first, flush=True)
        for step in range(first + 1, 1000):
            checkpoints.save(step, state_at(step), {})
            print("saving", step, flush=True)
for line in sys.stdin:  # each run is a forked child, so the imports are not repeated
    child = os.fork()
    if child == 0:
        try:
            run()
        except BaseException as error:
            print("failed", repr(error), flush=True)
        os._exit(1)
    print("child", child, flush=True)
    os.waitpid(child, 0)
    print("over", flush=True)
"""


def test_a_kill_during_a_save_loses_at_most_two_steps(tmp_path, request):
    """After each kill the restored step is intact, and the next run continues from it."""
    command = [sys.executable, "-c", SAVER, str(tmp_path / "run"), str(Path(training.__file__).parents[2])]
    env = {**os.environ, "XLA_FLAGS": ""}
    rng, newest = random.Random(1), 0
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env) as parent:
        read_words = lambda: parent.stdout.readline().split()
        for _ in range(request.config.getoption("--kills")):
            parent.stdin.write("go\n")
            parent.stdin.flush()
            child, saves_left = None, rng.randrange(1, 6)
            while saves_left > 0:
                word, *rest = read_words()
                assert word != "failed", rest
                if word == "child":
                    child = int(rest[0])
                elif word == "from":
                    assert int(rest[0]) >= newest - 2, (rest, newest)
                    newest = int(rest[0])
                elif word == "saving":
                    newest, saves_left = int(rest[0]), saves_left - 1
            signal.sigtimedwait([], rng.random() * 0.05)
            os.kill(child, signal.SIGKILL)
            while (word := read_words())[0] != "over":
                newest = int(word[1]) if word[0] == "saving" else newest
        parent.stdin.close()
    assert newest > request.config.getoption("--kills")


@pytest.mark.newest
def test_checkpoints_keep_the_latest_and_every_kth(tmp_path):
    state, step = make()
    with Checkpoints(tmp_path, keep_latest=2, keep_every=10) as checkpoints:
        for i in range(1, 8):
            checkpoints.save(5 * i, state, {"config": {"a": [1, 2.5, "x", None]}, "at": i})
        assert checkpoints.steps == [10, 20, 30, 35]
        state, _ = step(state, batch_of(4))
        checkpoints.save(40, state, {"at": 8})
        assert checkpoints.steps == [10, 20, 30, 35, 40]
    with Checkpoints(tmp_path) as checkpoints:
        restored = checkpoints.restore(40, jax.eval_shape(lambda: make()[0]))
        assert checkpoints.record(40) == {"at": 8}
        assert checkpoints.record(30)["config"] == {"a": [1, 2.5, "x", None]}
    assert_equal = lambda a, b: np.testing.assert_array_equal(
        *(jax.random.key_data(v) if jnp.issubdtype(v.dtype, jax.dtypes.prng_key) else v for v in (a, b))
    )
    jax.tree.map(assert_equal, restored, state)


@pytest.mark.parametrize("read_only", [True, False])
def test_a_reader_keeps_an_unfinished_save(read_only, tmp_path):
    """Control: a writer deletes it, because it is the rest of a killed save."""
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, make()[0], {})
    unfinished = tmp_path / "2.part.orbax-checkpoint-tmp-1"
    shutil.copytree(tmp_path / "1", unfinished)
    with Checkpoints(tmp_path, read_only=read_only) as checkpoints:
        assert checkpoints.steps == [1]
    assert unfinished.exists() == read_only


def test_a_checkpoint_of_eight_devices_restores_onto_one(tmp_path):
    state, _ = make()
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, training.place(state, training.make_mesh()), {})
        restored = checkpoints.restore(1, state)
    assert restored.params["w"].devices() == state.params["w"].devices()
    np.testing.assert_array_equal(restored.params["w"], state.params["w"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"keep_latest": 0}, "keep_latest must be an int >= 1, got 0"), ({"keep_every": -1}, "keep_every")],
)
def test_bad_settings_are_refused(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        Checkpoints(tmp_path, **changes)
