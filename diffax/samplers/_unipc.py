"""UniPC."""

from diffax._checks import choose
from diffax.samplers._base import Sampler
from diffax.samplers.engines.adams import adams
from diffax.samplers.engines.forms import check_order
from diffax.typing import Integrand, Schedule, Variant


def unipc(
    schedule: Schedule,
    *,
    order: int = 3,
    variant: Variant = "bh2",
    form: Integrand = "eps",
    corrected: bool = True,
    lower_order_final: bool = False,
) -> Sampler:
    """UniPC (Zhao et al. 2023, algorithms 1 and 2), order p + 1, or UniP of order p without the corrector.

    The predictor is the exponential Adams-Bashforth step of order p, the corrector the Adams-Moulton step through
    one point more, applied when the next call makes that point known. The variants differ only where one slope stands
    alone (p = 2 in the predictor, p = 1 in the corrector); order=1 without the corrector is `ddim`.

    Args:
      schedule: noise schedule.
      order: p, 1, 2 or 3.
      variant: "bh1" or "bh2". The released "vary_coeff" converges at order 1 and is left out.
      form: "eps" (noise prediction) or "x0" (data prediction).
      corrected: whether the corrector is used.
      lower_order_final: whether the last moves are of order .. 2, 1.

    Raises:
      ValueError: for another order, variant or form.
    """
    choose("variant", variant, ("bh1", "bh2"))
    choose("form", form, ("eps", "x0"))
    order = check_order(order, 3)
    return adams(
        schedule, form=form, order=order, rule=variant, corrected=corrected, lower_order_final=lower_order_final
    )
