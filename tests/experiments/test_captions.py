"""Captions: words and tokens, emoji from a generated font, batches, and runs of a model of captions."""

import io
import sys

import jax
import numpy as np
import pytest
from commands import DATA, built, opened
from PIL import Image
from test_experiments import call

from diffax import training
from diffax.pretrained import Tokenizer
from experiments.configs import emoji_text, smoke
from experiments.data import emoji
from experiments.data.datasets import open_dataset
from experiments.data.pipeline import batches
from experiments.evaluation import caption_score
from experiments.model import build
from experiments.models import captions as text

COLOURS = {  # code point -> colour. The last code point has no name; the second is not in an emoji block.
    0x1F600: (255, 200, 0),
    0x0023: (1, 2, 3),
    0x2764: (255, 0, 0),
    0x1F691: (200, 0, 0),
    0x1F49A: (0, 255, 0),
    0x1F499: (0, 0, 255),
    0x1F9E1: (255, 128, 0),
    0x1F49B: (255, 255, 0),
    0x1F49C: (128, 0, 128),
    0x1F100: (9, 9, 9),
    0x1F1E6: (0, 100, 200),
    0x10FFFD: (7, 7, 7),
}


def write_font(path, colours):
    """Write a font of bitmaps (PNG in CBDT) of 12x10 pixels: one colour, with transparent columns on the left."""
    from fontTools.fontBuilder import FontBuilder
    from fontTools.ttLib import newTable
    from fontTools.ttLib.tables import C_B_D_T_, E_B_L_C_
    from fontTools.ttLib.tables.BitmapGlyphMetrics import SmallGlyphMetrics

    names = {code: f"u{code:X}" for code in sorted(colours)}
    builder = FontBuilder(1024, isTTF=True)
    builder.setupGlyphOrder([".notdef", *names.values()])
    builder.setupCharacterMap({**names, 0x20: ".notdef"})
    strike, glyphs = E_B_L_C_.Strike(), {}
    size = strike.bitmapSizeTable
    lines = E_B_L_C_.SbitLineMetrics()
    metrics = "widthMax caretSlopeNumerator caretSlopeDenominator caretOffset minOriginSB minAdvanceSB maxBeforeBL"
    for field in f"ascender descender {metrics} minAfterBL pad1 pad2".split():
        setattr(lines, field, 0)
    size.hori = size.vert = lines
    size.colorRef, size.startGlyphIndex, size.endGlyphIndex = 0, 1, len(names)
    size.ppemX = size.ppemY = 12
    size.bitDepth, size.flags = 32, 1
    index = E_B_L_C_.eblc_index_sub_table_1(b"", builder.font)
    index.names, index.indexFormat, index.imageFormat = list(names.values()), 1, 17
    index.firstGlyphIndex, index.lastGlyphIndex = 1, len(names)
    strike.indexSubTables = [index]
    for code, name in names.items():
        pixels = np.zeros((10, 12, 4), np.uint8)
        pixels[:, 3:] = (*colours[code], 255)
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG")
        glyph = C_B_D_T_.cbdt_bitmap_format_17(b"", builder.font)
        glyph.metrics = SmallGlyphMetrics()
        for field, value in {"height": 10, "width": 12, "BearingX": 0, "BearingY": 0, "Advance": 12}.items():
            setattr(glyph.metrics, field, value)
        glyph.imageData = file.getvalue()
        glyphs[name] = glyph
    locations, data = newTable("CBLC"), newTable("CBDT")
    locations.version, locations.strikes = 3.0, [strike]
    data.version, data.strikeData = 3.0, [glyphs]
    builder.font["CBLC"], builder.font["CBDT"] = locations, data
    builder.font.save(path)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """The folder of an emoji data set from a font of a dozen characters."""
    folder = tmp_path_factory.mktemp("tiny")
    write_font(folder / "font.ttf", COLOURS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NOTO_COLOR_EMOJI", str(folder / "font.ttf"))
        open_dataset("emoji", str(folder))
    return folder


@pytest.fixture(scope="module")
def dataset(tiny):
    return open_dataset("emoji", str(tiny))


def test_emoji_have_the_pictures_of_the_font_and_their_names(dataset):
    records = {}
    for part in ("train", "test"):
        for record in dataset.source(part):
            records[record["caption"]] = (part, record["x"], record["label"])
    names = {
        "grinning face": (0x1F600, "emoticons"),
        "heavy black heart": (0x2764, "symbols"),
        "ambulance": (0x1F691, "transport"),
        "green heart": (0x1F49A, "pictographs"),
        "blue heart": (0x1F499, "pictographs"),
        "yellow heart": (0x1F49B, "pictographs"),
        "purple heart": (0x1F49C, "pictographs"),
        "orange heart": (0x1F9E1, "supplement"),
        "digit zero full stop": (0x1F100, "letters"),
        "regional indicator symbol letter a": (0x1F1E6, "letters"),
    }
    assert set(records) == set(names)
    for name, (code, block) in names.items():
        part, image, label = records[name]
        assert part == ("test" if emoji.is_test(code) else "train")
        assert list(emoji.BLOCKS)[label] == block
        assert image[16, 16:].tolist() == [list(COLOURS[code])] * 16  # the glyph, resized
        for white in (image[:, :7], image[:2], image[-2:]):  # the transparent part, and the padding above and below
            assert (white == 255).all()
    assert (dataset.shape, dataset.num_classes, dataset.units.range) == ((32, 32, 3), 6, (0, 255))


def test_an_eighth_is_held_out():
    share = np.mean([emoji.is_test(code) for code in range(0x1F300, 0x1FAFF)])
    assert abs(share - 1 / 8) < 0.02


@pytest.mark.parametrize(
    ("font", "message"),
    [
        (
            "nowhere.ttf",
            "needs the font .*nowhere.ttf: apt-get install fonts-noto-color-emoji, or set NOTO_",
        ),
        ("text.ttf", r"NOTO_COLOR_EMOJI must be a font with pictures \(table CBDT\), got .*text.ttf"),
    ],
)
def test_the_error_for_a_missing_or_wrong_font_says_what_to_install(font, message, tmp_path, monkeypatch):
    (tmp_path / "text.ttf").write_text("no font")
    monkeypatch.setenv("NOTO_COLOR_EMOJI", str(tmp_path / font))
    with pytest.raises(ValueError, match=message):
        open_dataset("emoji", str(tmp_path))


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "fontTools.ttLib", None)
    with pytest.raises(ValueError, match=r"dataset.name = 'emoji' needs a package: pip install fonttools"):
        next(emoji.read_font("font.ttf"))


@pytest.mark.parametrize("cache", [False, True])
def test_batches_hold_the_tokens_of_their_images(dataset, cache):
    captions = dataset.captions("train")
    tokenizer = Tokenizer.of(captions, 100, 6)
    batch = next(batches(dataset, "train", len(captions), seed=0, cache=cache, encode=tokenizer.encode))
    images, _ = dataset.arrays("train")
    expected = {image.tobytes(): tokens for image, tokens in zip(images, tokenizer.encode(captions), strict=True)}
    assert batch["tokens"].shape == (len(captions), 6)
    for image, tokens in zip(batch["x"], batch["tokens"], strict=True):
        np.testing.assert_array_equal(tokens, expected[image.tobytes()])
    assert "tokens" not in next(batches(dataset, "train", 2, seed=0))


def test_captions_of_a_set_without_captions_raise(data_dir):
    with pytest.raises(ValueError, match=r"dataset.name = 'digits' has no captions \(a feature 'caption'\)"):
        open_dataset("digits", str(data_dir)).captions("train")


def settings(folder, **changes):
    """The config of a small model of captions."""
    config = smoke.get_config()
    config.dataset.update({"name": "emoji", "data_dir": str(folder), "batch_size": 8, "test_split": "train"})
    config.network.update(
        {"conditional": False, "channel_multipliers": (1, 1, 1, 1), "attention_levels": (3,), "dropout_rate": 0.0}
    )
    config.text.update({"enabled": True, "vocab_size": 12, "max_length": 5, "width": 8, "depth": 1, "num_heads": 2})
    config.text.update(changes)
    return config


def test_dropped_captions_are_empty(tiny):
    """With p_uncond = 1 every caption is empty; with 0 none is."""
    seen = []

    class Spy:
        def apply(self, params, x, t, tokens, key=None):
            seen.append(np.asarray(tokens))
            return x

    batch = {
        "x": np.zeros((64, 2, 2, 1), np.float32),
        "tokens": np.tile(np.array([[3, 4, 0]], np.int32), (64, 1)),
        "index": np.arange(64),
    }
    for p_uncond in (0.0, 0.25, 1.0):
        config = settings(tiny)
        config.loss.p_uncond = p_uncond
        config.dataset.batch_size = 64
        build(config, DATA["emoji"]).objective(module=Spy()).loss({}, batch, jax.random.split(jax.random.key(0), 64))
    assert (seen[0] == batch["tokens"]).all()
    whole = (seen[1] == batch["tokens"]).all(1)
    assert (whole | (seen[1] == 0).all(1)).all()
    assert 36 < whole.sum() < 60
    assert not seen[2].any()


@pytest.mark.parametrize(
    ("changes", "conditional", "message"),
    [
        ({}, True, "config.network.conditional must be False with config.text.enabled"),
        ({"vocab_size": 2}, False, "config.text.vocab_size must be >= 3, got 2"),
        ({"max_length": 0}, False, "config.text.max_length must be >= 1, got 0"),
        ({"num_heads": 3}, False, "config.text.width must be even and a multiple of num_heads, got 8"),
    ],
)
def test_settings_are_checked(changes, conditional, message, tiny):
    config = settings(tiny, **changes)
    config.network.conditional = conditional
    with pytest.raises(ValueError, match=message):
        built(config)


@pytest.mark.newest
def test_the_config_of_the_experiment_is_valid_and_documented():
    built(emoji_text.get_config())
    for word in ("python -m experiments.train", "Hardware", "Time", "Metric"):
        assert word in emoji_text.__doc__


def test_moved_captions_are_a_permutation_without_fixed_points():
    for count in (2, 3, 50):
        order = caption_score.moved(np.random.default_rng(0), count)
        assert sorted(order) == list(range(count))
        assert (order != np.arange(count)).all()


@pytest.mark.slow
def test_a_run_with_captions_is_trained_exported_sampled_and_scored(tiny, tmp_path):
    """Processes of train, export, caption_score and `sample --captions`, and their errors for bad flags."""
    flags = [
        "--config=experiments/configs/emoji_text.py",
        f"--config.dataset.data_dir={tiny}",
        "--config.dataset.batch_size=4",
        "--config.dataset.test_split=train",
        "--config.network.channels=8",
        "--config.network.num_heads=2",
        "--config.text.width=16",
        "--config.text.num_heads=2",
        "--config.text.vocab_size=64",
        "--config.train.num_steps=400",
        "--config.train.sample_every=1000",
        f"--workdir={tmp_path / 'run'}",
    ]
    call("train", *flags)
    assert "has a run with config.text.width = 16, got 8" in call("train", *flags, "--config.text.width=8", ok=False)
    export, out = tmp_path / "export", tmp_path / "out"
    call("export", f"--checkpoint={tmp_path / 'run'}", f"--out={export}")
    report = call("caption_score", f"--checkpoint={export}", "--num=6", "--draws=10")
    gain, error = report.split("others - right")[1].split()[0:3:2]
    assert float(gain) > 2 * float(error) > 0
    flags = (f"--checkpoint={export}", f"--out={out}", "--num_steps=20", "--guidance=1")
    call("sample", *flags, "--num=16", "--captions=green heart,blue heart")
    drawn = np.load(out / "shard_00000.npz")
    colours = drawn["samples"][:, 14:18, 18:26].mean((1, 2))
    assert (colours[::2, 1] - colours[::2, 2]).mean() > 30  # greener than blue
    assert (colours[1::2, 2] - colours[1::2, 1]).mean() > 30
    assert (drawn["labels"] == -1).all()
    for more, message in (
        (["--labels=3"], "labels must be empty for a model of captions, got 3"),
        (["--captions=" + "heart " * 13], "captions must have at most 12 words, got 13"),
        (["--captions=blue heart"], "has samples with captions = ['green heart', 'blue heart'], got ['blue heart']"),
    ):
        assert message in call("sample", *flags, "--num=16", *more, ok=False)


@pytest.mark.slow
def test_the_vocabulary_has_the_words_of_the_training_captions_and_is_recorded(tiny, dataset, tmp_path):
    """A new run makes the vocabulary and records it; a resumed or adapted run uses the recorded one."""
    config = settings(tiny)
    run = opened(config, tmp_path)
    words = Tokenizer.of(dataset.captions("train"), 12, 5).words
    assert run.record["words"] == words
    assert len(words) == 10
    assert text.tokenizer(dataset, "train", 12, 5, ["other"]).words == ["other"]
    model = built(config)
    optimizer = model.optimizer.make()
    state = jax.eval_shape(lambda key: training.init_state(key, model.init(key), optimizer), jax.random.key(0))
    step = training.train_step(model.objective().loss, optimizer, ema_decay=0.9)
    after, metrics = jax.eval_shape(step, state, next(run.batches))
    assert metrics["loss"].shape == ()
    assert jax.tree.map(lambda v: v.shape, after.params) == jax.tree.map(lambda v: v.shape, state.params)
