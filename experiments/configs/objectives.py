"""The objectives that config.loss.objective may name: what each needs, and the rules of its settings."""

from collections.abc import Callable
from typing import Any, NamedTuple

from diffax._checks import choose

PART = 4  # in some objectives one of so many neighbours in a batch has another loss than the others


class Row(NamedTuple):
    """What an objective needs.

    teacher: "none", "optional" or "needed". times: of the network, "one", "two" or "any". ends: "any" for a network
    that is trained to map to all s <= t, "data" for s = 0 alone. group: the number of neighbours of a batch that must
    be on one device. uses: fields of the training state that the loss gets. derivative: whether the loss takes the
    derivative of the network in t. levels: whether the time is a uniform draw of a level. guides: whether it guides
    without a teacher. guidance_input: whether the network has a guidance weight as an input. memory: whether the
    objective has a memory that begins with the parameters of the teacher.
    """

    teacher: str = "none"
    times: str = "one"
    ends: str = "any"
    group: int = 1
    uses: tuple[str, ...] = ()
    derivative: bool = False
    levels: bool = False
    guides: bool = False
    guidance_input: bool = False
    memory: bool = False


BOUNDS = ("hybrid", "vlb", "vdm")
FEW_STEPS = {
    "mean_flow": Row("optional", "two", derivative=True, guides=True),
    "improved_mean_flow": Row("optional", "two", derivative=True, guides=True),
    "lagrangian": Row("optional", "two", derivative=True, group=PART),
    "shortcut": Row("none", "two", group=PART, uses=("ema",)),
    "consistency": Row("optional", "any", "data", uses=("step",)),
    "easy_consistency": Row("none", "any", "data", uses=("step",)),
    "consistency_distillation": Row("needed", "any", "data", uses=("ema",), levels=True),
    "latent_consistency": Row("needed", "two", "data", uses=("ema",), levels=True, guidance_input=True),
    "continuous_consistency": Row("optional", "any", "data", uses=("step",), derivative=True),
    "progressive": Row("needed", "one", uses=("step",), levels=True, memory=True),
}
ROWS = {"denoising": Row(), **dict.fromkeys(BOUNDS, Row()), **FEW_STEPS}
COUPLINGS = ("independent", "optimal_transport")


def check(config: Any, must: Callable[[str, bool, str], None]) -> None:
    """Raise `ValueError` for settings that do not fit the objective, the coupling or the pairs.

    must: raises the error "config.PATH must CONDITION, got its value" unless a condition holds: (path, holds, text).
    """
    loss, network = config.loss, config.network
    name = choose("config.loss.objective", loss.objective, tuple(ROWS))
    row, is_few, is_bound = ROWS[name], name in FEW_STEPS, name in BOUNDS
    must("loss.weighting", name == "denoising" or loss.weighting == "target", f"be target for {name}")
    must("teacher", bool(config.teacher) or row.teacher != "needed", f"be a workdir or an export for {name}")
    must("teacher", not config.teacher or row.teacher != "none", f"be empty for {name}")
    is_two, takes_weight = row.times == "two", row.guidance_input
    must("network.second_time", row.times == "any" or network.second_time == is_two, f"be {is_two} for {name}")
    must("network.guidance_input", network.guidance_input == takes_weight, f"be {takes_weight} for {name}")
    if network.time_scale is not None:
        must("network.time_scale", 0 < network.time_scale < float("inf"), "be > 0")
    if is_few:
        must("loss.times", loss.times != "loss_aware", f"not be loss_aware for {name}")
        must("loss.times", not row.levels or loss.times == "uniform", f"be uniform for {name}")
        draws_pairs = is_two and not row.levels
        must("loss.spread", not draws_pairs or loss.spread == "independent", f"be independent for {name}")
        if "guidance" in loss.objective_parameters and not config.teacher:
            must("loss.objective_parameters", row.guides, f"be without guidance for {name} without config.teacher")
            must("loss.p_uncond", loss.p_uncond > 0, f"be > 0 for {name} with guidance and without config.teacher")
    if row.memory:
        must("lora.base", not config.lora.base, f"be empty for {name}")
        must("init_from", config.init_from == config.teacher, f"be config.teacher = {config.teacher!r} for {name}")
    choose("config.loss.coupling", loss.coupling, COUPLINGS)
    if loss.coupling != "independent":
        must("loss.coupling", not is_bound, f"be independent for {name}")
        # The noise would depend on the condition, and samples start from noise that does not (Cheng et al. 2025).
        has_condition = network.conditional or config.text.enabled
        must("loss.coupling", not has_condition, "be independent for a network with a condition")
        must("dataset.pairs", not config.dataset.pairs, "be empty with config.loss.coupling")
        must("loss.coupling_size", loss.coupling_size >= 2, "be >= 2")
    if config.dataset.pairs:
        must("loss.objective", not is_bound, "be denoising or one for few steps with config.dataset.pairs")
        for key in ("flip", "crop", "roll", "rotate"):
            must("dataset.pairs", not config.dataset[key], f"be empty with config.dataset.{key}")
