"""Objectives of few-step models: flow maps, consistency models and their distillation, see `diffax.flow_maps`.

    objective                  network         teacher     source
    mean_flow                  two times       optional    Geng et al. 2025
    improved_mean_flow         two times       optional    Geng et al. 2025b
    lagrangian                 two times       optional    Boffi et al. 2025
    shortcut                   two times       none        Frans et al. 2025
    consistency                one or two      optional    Song & Dhariwal 2024 (iCT; improved CD with a teacher)
    easy_consistency           one or two      none        Geng et al. 2024 (ECT; from a trained model by init_from)
    consistency_distillation   one or two      needed      Song et al. 2023 (CD)
    latent_consistency         two, guidance   needed      Luo et al. 2023 (LCM)
    continuous_consistency     one or two      optional    Lu & Song 2025 (sCM)
    progressive                one time        needed      Salimans & Ho 2022

What each needs is in `experiments.configs.objectives`. The keyword arguments of each function, with their defaults, are
its config.loss.objective_parameters; those without a default are fields of the training state. A function gets
`settings`, the `Loss` of the model, and `drawn`, the batch as `Drawn`, and returns the losses (B,).
"""

from collections.abc import Callable
from typing import Any

from experiments.models.few_steps._consistency import (
    consistency,
    consistency_distillation,
    continuous_consistency,
    easy_consistency,
    latent_consistency,
)
from experiments.models.few_steps._progressive import next_teacher, progressive
from experiments.models.few_steps.maps import improved_mean_flow, lagrangian, mean_flow, shortcut
from experiments.models.few_steps.parameters import checked
from experiments.models.few_steps.parts import Drawn, Teacher

__all__ = ["LOSSES", "Drawn", "Teacher", "checked", "next_teacher"]

LOSSES: dict[str, Callable[..., Any]] = {
    "mean_flow": mean_flow,
    "improved_mean_flow": improved_mean_flow,
    "lagrangian": lagrangian,
    "shortcut": shortcut,
    "consistency": consistency,
    "easy_consistency": easy_consistency,
    "consistency_distillation": consistency_distillation,
    "latent_consistency": latent_consistency,
    "continuous_consistency": continuous_consistency,
    "progressive": progressive,
}
