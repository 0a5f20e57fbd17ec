"""Couplings: which noise, or which end of given pairs, belongs to which data of a batch.

A loss draws x_t = alpha x0 + sigma eps. Any joint distribution of (x0, eps) with the right marginals gives a model of
the data; straighter paths need fewer steps. Pass the result as `eps`:

    independent         eps = noise, the default of every loss
    optimal_transport   noise in the order that is nearest to the data of the batch
    given pairs         eps = batch["eps"], such as the noise from which a trained model drew x0 (reflow), or the other
                        image of a pair

    eps = couplings.optimal_transport(key, x0)
    loss = denoising_loss(key, predict, schedule, "velocity", x0, t, eps=eps)

Source: Liu et al. 2023 (reflow); Pooladian et al. 2023, Tong et al. 2024 (minibatch optimal transport).
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from diffax import random
from diffax._checks import check_float
from diffax.typing import Array, Key, Tree

Assign = Callable[[Array], Array]  # costs (B, B) -> for each row its column


def independent(key: Key, x0: Tree) -> Any:
    """Noise like x0, independent of it. key: () or (B,); consumed."""
    return random.noise(random.stream(key, "coupling"), x0)


def hungarian(costs: Array) -> Array:
    """The columns (B,) of the exact assignment of least total cost, by optax; work of the order B^3."""
    import optax.assignment

    rows, columns = optax.assignment.hungarian_algorithm(costs)
    result: Array = jnp.zeros_like(columns).at[rows].set(columns)
    return result


def optimal_transport(key: Key, x0: Tree, *, assign: Assign = hungarian) -> Any:
    """Noise like x0 in the order that minimises sum_i |x0_i - eps_i|^2 over the batch.

    The result for an example depends on its whole batch; on several devices, on the part of the batch of its device.

    Args:
      key: () or (B,); consumed.
      x0: (B, ...) data.
      assign: costs (B, B) -> columns (B,); default the exact `hungarian`. Another assignment goes here, such as one of
        ott-jax for large batches.

    Raises:
      ValueError: for an x0 that is not of a float type.

    >>> x0 = jnp.array([[3.0], [-3.0]])
    >>> eps = optimal_transport(jax.random.key(1), x0)
    >>> bool(eps[0, 0] > eps[1, 0])
    True
    """
    check_float("x0", x0)
    eps = independent(key, x0)

    def flat(tree: Tree) -> Array:
        return jnp.concatenate([leaf.reshape(len(leaf), -1) for leaf in jax.tree.leaves(tree)], 1)

    # |x0|^2 and |eps|^2 do not change with the order.
    columns = assign(-jnp.matmul(flat(x0), flat(eps).T, precision="highest"))
    return jax.tree.map(lambda leaf: leaf[columns], eps)
