"""Operations of traced programs, against counts by hand; peaks and memory of devices."""

from unittest.mock import Mock

import jax
import jax.numpy as jnp
import pytest

from diffax.training import flops


def test_operations_of_a_product():
    a, b = jax.ShapeDtypeStruct((8, 16), jnp.float32), jax.ShapeDtypeStruct((16, 4), jnp.float32)
    assert flops.matmul_flops(lambda a, b: a @ b, a, b) == 2 * 8 * 16 * 4
    assert flops.training_flops(lambda a, b: jnp.tanh(a @ b), a, b) == 3 * 2 * 8 * 16 * 4


def test_operations_inside_loops_and_branches():
    square = jnp.ones((4, 4))
    five = lambda x: jax.lax.scan(lambda y, _: (y @ square, None), x, length=5)[0]
    assert flops.matmul_flops(five, square) == 5 * 2 * 4**3
    assert flops.matmul_flops(jax.checkpoint(jax.jit(lambda x: x @ square)), square) == 2 * 4**3
    branch = lambda x: jax.lax.cond(x.sum() > 0, lambda x: x @ x @ x, lambda x: x @ x, x)
    assert flops.matmul_flops(branch, square) == 2 * 2 * 4**3


def test_operations_of_a_convolution():
    """Each of 5 x 5 x 7 results sums 3 x 3 x 2 products."""
    x, w = jnp.ones((1, 5, 5, 2)), jnp.ones((3, 3, 2, 7))
    conv = lambda x, w: jax.lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    assert flops.matmul_flops(conv, x, w) == 2 * (5 * 5 * 7) * (3 * 3 * 2)
    grouped = lambda x, w: jax.lax.conv_general_dilated(
        x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=2
    )
    assert flops.matmul_flops(grouped, x, jnp.ones((3, 3, 1, 8))) == 2 * (5 * 5 * 8) * (3 * 3)


def test_operations_of_attention():
    """Two products, q k^T and the weights times v, for 2 x 3 heads and 4 x 4 positions of size 8."""
    x = jax.ShapeDtypeStruct((2, 4, 3, 8), jnp.bfloat16)
    attention = lambda q, k, v: jax.nn.dot_product_attention(q, k, v, implementation="xla")
    assert flops.matmul_flops(attention, x, x, x) == 2 * (2 * 3 * 4 * 4 * 8) * 2


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H100 80GB HBM3", 989.4e12),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("TPU v5 lite", 197e12),
        ("TPU v5p", 459e12),
        ("NVIDIA GeForce RTX 4090 D", None),
        ("cpu", None),
    ],
)
def test_the_peak_of_a_device_is_found_by_its_exact_kind(kind, expected):
    peak = flops.peak(kind)
    assert (peak and peak.bfloat16) == expected


def test_memory_is_the_largest_peak_where_all_devices_report_it():
    first, second, silent = (
        Mock(spec=jax.Device, **{"memory_stats.return_value": stats})
        for stats in ({"peak_bytes_in_use": 5}, {"peak_bytes_in_use": 7}, None)
    )
    assert flops.memory([first, second]) == 7
    assert flops.memory([first, silent]) is None
    assert flops.memory([]) is None
