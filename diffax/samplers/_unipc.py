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

        predictor   x_s = alpha_s / alpha_t x_t - sigma_s expm1(h) eps_t - sigma_s B(h) sum_m a_m D_m / r_m       eps
        predictor   x_s = sigma_s / sigma_t x_t - alpha_s expm1(-h) x0_t - alpha_s B(-h) sum_m a_m D_m / r_m      x0
        corrector   the same step with D_p / r_p, r_p = 1, as an additional term and its own a_m, once f_s is known

    f is eps or x0, h = lambda_s - lambda_t with lambda = log(alpha / sigma), r_m = (lambda_m - lambda_t) / h and
    D_m = f_m - f_t for the previous nodes; B(h) = h (bh1) or expm1(h) (bh2). The a_m are determined by the order, so
    the predictor is the exponential Adams-Bashforth step and the corrector the Adams-Moulton step, applied when the
    next call has computed f_s. B has an effect only where one slope is used (in the predictor for p = 2, in the
    corrector for p = 1). One call a step; order=1 without the corrector is `ddim`.

    Args:
      schedule: noise schedule.
      order: p, 1, 2 or 3.
      variant: "bh1" or "bh2". The released "vary_coeff" converges only at order 1 and is not included.
      form: "eps" (noise prediction) or "x0" (data prediction).
      corrected: whether the corrector is used.
      lower_order_final: whether the last moves have order .. 2, 1.

    Raises:
      ValueError: for another order, variant or form.
    """
    choose("variant", variant, ("bh1", "bh2"))
    choose("form", form, ("eps", "x0"))
    order = check_order(order, 3)
    return adams(
        schedule, form=form, order=order, rule=variant, corrected=corrected, lower_order_final=lower_order_final
    )
