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

The keyword arguments of each function, with their defaults, are its config.loss.objective_parameters. A function gets
`settings`, the `Loss` of the model, and `drawn`, the batch as `Drawn`, and returns the losses (B,).
"""

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
from experiments.models.few_steps.parts import PART, Drawn, Row, Teacher

__all__ = ["PART", "ROWS", "Drawn", "Row", "Teacher", "checked"]

ROWS = {
    "mean_flow": Row(mean_flow, "optional", "two", derivative=True, guides=True),
    "improved_mean_flow": Row(improved_mean_flow, "optional", "two", derivative=True, guides=True),
    "lagrangian": Row(lagrangian, "optional", "two", derivative=True, group=PART),
    "shortcut": Row(shortcut, "none", "two", group=PART, uses=("ema",)),
    "consistency": Row(consistency, "optional", "any", "data", uses=("step",)),
    "easy_consistency": Row(easy_consistency, "none", "any", "data", uses=("step",)),
    "consistency_distillation": Row(consistency_distillation, "needed", "any", "data", uses=("ema",), levels=True),
    "latent_consistency": Row(
        latent_consistency, "needed", "two", "data", uses=("ema",), levels=True, guidance_input=True
    ),
    "continuous_consistency": Row(continuous_consistency, "optional", "any", "data", uses=("step",), derivative=True),
    "progressive": Row(progressive, "needed", "one", uses=("step",), levels=True, learns=next_teacher),
}
