"""Noise schedules: a decreasing log-SNR curve times a scaling.

    x_t = alpha x0 + sigma eps,   eps ~ N(0, I),   t in [0, 1]: 0 is data, 1 is noise
    lambda(t) = log(alpha^2 / sigma^2) = -2 log r,   r = sigma / alpha

A schedule is a frozen dataclass pytree, so its parameters may be traced, vmapped and differentiated.
The scaling turns r into (alpha, sigma); any curve combines with any scaling:

    vp      alpha^2 + sigma^2 = 1       alpha = 1 / sqrt(1 + r^2)
    ve      alpha = 1                   sigma = r
    sub_vp  sigma = 1 - alpha^2         alpha = 2 / (r + sqrt(r^2 + 4))
    flow    alpha + sigma = 1           alpha = 1 / (1 + r)

|lambda| is clipped to 20. So alpha and sigma are never 0, and t = 0 and t = 1 need no special case. At and beyond
the clip the derivatives are the one-sided derivatives from inside (docs/how_it_works.md, "Slopes at the clip").

    name                           here        r(t)                                 scaling  source
    linear                         Linear      sqrt(exp(B) - 1), beta linear in t   vp       Song et al. 2021
    quadratic                      Quadratic   the same, sqrt(beta) linear in t     vp       Rombach et al. 2022
    sub_vp                         SubVP       2 sinh(B / 2), beta linear in t      sub_vp   Song et al. 2021
    cosine                         Cosine      tan(pi t / 2)                        vp       Nichol & Dhariwal 2021
    sigmoid                        Sigmoid     alpha^2 a falling sigmoid            vp       Jabri et al. 2022
    laplace                        Laplace     lambda a quantile of Laplace's       vp       Hang et al. 2024
    flow                           Flow        t / (1 - t)                          flow     Liu et al. 2023
    log_linear                     LogLinear   sigma_min (sigma_max / sigma_min)^t  ve       Song & Ermon 2019
    edm                            EDM         r^(1 / rho) linear in t              ve       Karras et al. 2022
    learned                        Learned     a monotone network, trained          vp       Kingma et al. 2021
    shifted_cosine                 shifted     shift times that of Cosine           vp       Hoogeboom et al. 2023
    shifted_flow                   shifted     shift times that of Flow             flow     Esser et al. 2024
    linear_betas                   from_betas  a table, betas linear                vp       Ho et al. 2020
    quadratic_betas                from_betas  a table, sqrt(beta) linear           vp       Rombach et al. 2022
    cosine_betas                   from_betas  a table of Cosine, capped            vp       Nichol & Dhariwal 2021
    sigmoid_betas                  from_betas  a table of Sigmoid, capped           vp       Chen 2023
    zero_terminal_linear_betas     from_betas  the linear table, ending in noise    vp       Lin et al. 2024
    zero_terminal_quadratic_betas  from_betas  the quadratic one, ending in noise   vp       Lin et al. 2024

B(t) is the integral of beta from 0 to t. `name` is the name in configs. Stable Diffusion's code calls `quadratic`
"scaled_linear".
"""

from diffax.schedules._betas import cosine_betas, linear_betas, quadratic_betas, sigmoid_betas, zero_terminal_snr
from diffax.schedules._catalogue import CATALOGUE
from diffax.schedules._cosine import Cosine
from diffax.schedules._edm import EDM
from diffax.schedules._flow import Flow
from diffax.schedules._laplace import Laplace
from diffax.schedules._learned import Learned
from diffax.schedules._linear import Linear
from diffax.schedules._log_linear import LogLinear
from diffax.schedules._noise_floor import NoiseFloor
from diffax.schedules._quadratic import Quadratic
from diffax.schedules._shifted import shifted
from diffax.schedules._sigmoid import Sigmoid
from diffax.schedules._sub_vp import SubVP
from diffax.schedules._tabulated import Tabulated, from_betas
from diffax.schedules._transition import rates, transition

__all__ = [
    "CATALOGUE",
    "EDM",
    "Cosine",
    "Flow",
    "Laplace",
    "Learned",
    "Linear",
    "LogLinear",
    "NoiseFloor",
    "Quadratic",
    "Sigmoid",
    "SubVP",
    "Tabulated",
    "cosine_betas",
    "from_betas",
    "linear_betas",
    "quadratic_betas",
    "rates",
    "shifted",
    "sigmoid_betas",
    "transition",
    "zero_terminal_snr",
]
