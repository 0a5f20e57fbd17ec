"""DPM-Solver, single-step."""

from diffax._checks import check_schedule, choose
from diffax.samplers._base import Sampler
from diffax.samplers._ddim import ddim
from diffax.samplers.engines.forms import FORMS, check_order
from diffax.samplers.engines.stages import in_lambda, in_time, three_stage, two_stage
from diffax.typing import Integrand, Schedule


def dpm_solver(
    schedule: Schedule, *, order: int = 3, form: Integrand = "eps", space: str = "log_snr", taylor: bool = False
) -> Sampler:
    """Single-step DPM-Solver of order 1, 2 or 3 (Lu et al. 2022, algorithms 1 and 2); in form x0 DPM-Solver++.

    Order 2 has its intermediate point at r = 1/2 of the step, with the update of `engines.stages`. Order 3 has two, at
    1/3 and 2/3 of the step in lambda, with carry, gain and the moments M_j of `engines.forms`:

        x_1 = carry_1 x_t + gain_1 M_0(h / 3) f_t
        x_2 = carry_2 x_t + gain_2 (M_0(2 h / 3) f_t + M_1(2 h / 3) 3 / h (f_1 - f_t))
        x_s = carry_s x_t + gain_s (M_0(h) f_t + M_1(h) 3 / (2 h) (f_2 - f_t))

    Args:
      schedule: noise schedule.
      order: 1 (`ddim`), 2 or 3; also the number of calls in a step.
      form: "eps", or "x0" (DPM-Solver++).
      space: "log_snr" places the intermediate points evenly in lambda, "time" in t, as dpm-solver does on a time grid.
      taylor: whether to use the exact weights of dpm-solver's solver_type="taylor".

    Raises:
      ValueError: for another order, form or space.

    >>> import diffax
    >>> dpm_solver(diffax.Linear()).calls
    3
    """
    check_schedule(schedule)
    choose("form", form, ("eps", "x0"))
    place = choose("space", space, {"log_snr": in_lambda, "time": in_time})
    if check_order(order, 3) == 1:
        return ddim(schedule)
    if order == 2:
        return two_stage(schedule, form, 0.5, place=place, rule="exact" if taylor else "half")
    return three_stage(schedule, FORMS[form], place, taylor)
