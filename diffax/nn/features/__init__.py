"""Pretrained networks whose features the metrics of `diffax.metrics` compare: Inception of FID, EfficientNet-Lite0.

    efficientnet_lite0  trained on ImageNet, weights from a package (extra `features`): 1,280 features
    inception_v3        the one of FID, weights from a file that the user provides: 2,048 features

Distances are comparable only for the same network with the same weights.
"""

import functools
import os
from collections.abc import Callable
from typing import NamedTuple

from diffax._checks import choose
from diffax.nn.features import convolutions, efficientnet, inception
from diffax.nn.features.convolutions import Folded, Network
from diffax.nn.interop.torch_file import load_tensors
from diffax.typing import Array, Examples

__all__ = ["NETWORKS", "FeatureNetwork", "load"]

NETWORKS: dict[str, Network] = {"efficientnet_lite0": efficientnet.NETWORK, "inception_v3": inception.NETWORK}
"""The networks that `load` knows, by name."""


class FeatureNetwork(NamedTuple):
    """A pretrained network, from images to features.

    Attributes:
      params: kernel and bias of each convolution by its name in torch; batch norms are folded into them.
      width: the number of features.
      features: (params, images (N, H, W, 1 or 3) in [-1, 1]) -> (N, width) in float32. It repeats gray three times and
        resizes to the network's own size; it supports jit, vmap and grad. For other shapes it raises `ValueError`.
    """

    params: dict[str, Folded]
    width: int
    features: Callable[[dict[str, Folded], Examples], Array]


def load(name: str, path: str | os.PathLike[str] | None = None) -> FeatureNetwork:
    """Load a pretrained network and its weights.

    Args:
      name: efficientnet_lite0 or inception_v3.
      path: a file of weights with the names of torch: what `torch.save` wrote, .safetensors or .npz. No code of the
        file is run. inception_v3 needs one, pt_inception-2015-12-05-6726825d.pth of pytorch-fid; by default
        efficientnet_lite0 has the weights of its package.

    Raises:
      ValueError: for an unknown name, or weights that are missing, cannot be read or do not fit the network.

    Source: Tan & Le 2019 (EfficientNet); Szegedy et al. 2016, Heusel et al. 2017 (Inception of FID).

    >>> network = load("inception_v3", "pt_inception-2015-12-05-6726825d.pth")  # doctest: +SKIP
    >>> jax.jit(network.features)(network.params, jax.numpy.zeros((4, 32, 32, 3))).shape  # doctest: +SKIP
    (4, 2048)
    """
    network = choose("name", name, NETWORKS)
    if path is None and name == "efficientnet_lite0":
        path = efficientnet.packaged()
    if path is None:
        raise ValueError(f"path must be a file for {name}, got None: {inception.FILE}")
    params = convolutions.fold(network, load_tensors(path))
    return FeatureNetwork(params, network.width, functools.partial(convolutions.features, network))
