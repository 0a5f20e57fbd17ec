"""The table of restored test images: its tasks and its report, without a network."""

import jax.numpy as jnp
import numpy as np

from experiments.benchmarks.inverse_images import METHODS, _balanced, report, settings, tasks


def test_balanced_indices_cycle_through_the_classes():
    labels = np.array([3, 3, 3, 1, 1, 0])
    assert labels[_balanced(labels)].tolist() == [0, 1, 3, 1, 3, 3]


def test_every_method_has_tasks_and_every_task_accepts_its_measurement():
    restorations = tasks((8, 8, 1), 5)
    counts = {name: sum(method.applies(task) for task in restorations) for name, method in METHODS.items()}
    assert counts == dict.fromkeys(METHODS, 4) | {"replacement": 2, "repaint": 2, "ddnm_plus": 3}
    for task in restorations:
        task.operator.check(task.operator.forward(jnp.ones((5, 8, 8, 1))))


def test_the_report_has_a_table_for_each_task_and_for_each_method_with_several_settings():
    result = {"residual": 0.1, "psnr": 17.0, "largest": 1.0, "accuracy": 0.5, "fd": 2.0, "calls": 50, "seconds": 9.4}
    first, other, *_ = (setting.name for setting in settings(1.25))
    rows = [
        {"task": "A", "method": "ddnm", "setting": first, "products": 0, **result},
        {"task": "A", "method": "pigdm", "setting": first, "products": 50, **result},
        {"task": "B", "method": "ddnm", "setting": first, "products": 0, **result},
        {"task": "A", "method": "pigdm", "setting": other, "products": 50, **result},
    ]
    conditions = {"data": "digits", "num": 5, "num_steps": 50, "guidance": 1.25, "machine": "cpu"}
    text = report(rows, conditions | {"fd_of_the_images": 1.0, "accuracy_on_the_images": 0.99})
    assert text.count("\n## ") == 3
    assert "| pigdm | 0.100 | 17.0 | 1 | 50% | 2.00 | 50 + 50 | 9 |" in text
    assert text.count("\n### ") == 1
    assert f"| {other} | 0.100 | 17.0 | 1 | 50% | 2.00 |" in text
