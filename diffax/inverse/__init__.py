r"""Inverse problems: samples of x0 given a measurement y = A x0 + std n, n ~ N(0, I), with the denoiser of the prior.

A measurement is a pytree of linear functions (`operators`); a method wraps the denoiser, or the sampler where it also
edits x or the noise. Any denoiser, any sampler; they compose with guidance as that does.

    operators      Mask, BoxDownsample, Blur, gaussian_blur, linear (any linear function, by its transpose)

    method        wraps     x0 becomes, or x_s becomes                                             noise of y  products
    ddnm          denoiser  x0 + A^+ (y - A x0)                                                    none        -
    diffpir       denoiser  x0 + A^T (A A^T + rho I)^-1 (y - A x0)                                 std         -
    pigdm         denoiser  x0 + sigma^2/alpha J^T A^T (r^2 A A^T + std^2 I)^-1 (y - A x0)         std         1
    mmps          denoiser  x0 + V A^T (A V A^T + std^2 I)^-1 (y - A x0), V = sigma^2/alpha J^T    std         many
    replacement   sampler   alpha_s y + sigma_s z where known                                      none        -
    repaint       sampler   as replacement, on a grid that `times.jumps` made                            none        -
    dps           sampler   x_s - scale d|y - A x0|/dx_t                                           any         1
    ddnm_plus     is one    ddnm, y's noise in place of the sampler's                              std         -
    renoising     is one    DiffPIR's renoising, for `diffpir`                                     -           -

J = d x0 / d x; products with its transpose are what a call costs besides the network itself.

Clipping and guidance belong inside: wrap the denoiser that is guided and clipped already. Methods without products use
its x0 alone. pigdm, mmps and dps use its derivative as well, which is 0 where x0 is clipped, so that such entries are
steered through the others alone, and which guidance makes less symmetric. A method's own correction may leave the
data's range; `clip_static` around the method bounds it.

Which are exact: `pigdm` for data ~ N(m, v I), `mmps` for any Gaussian; all others are biased, even there. `posterior`
gives the exact law for Gaussian and mixture priors; docs/inverse.md has each method's error against it.
"""

from diffax.inverse._exact import GaussianMixture, moments, posterior
from diffax.inverse._guided import ddnm, diffpir, mmps, pigdm
from diffax.inverse._linear_map import LinearMap, conjugate_residuals, linear
from diffax.inverse._operators import Blur, BoxDownsample, Mask, Operator, gaussian_blur, project, pseudo_inverse
from diffax.inverse._wrappers import ddnm_plus, dps, renoising, repaint, replacement

__all__ = [
    "Blur",
    "BoxDownsample",
    "GaussianMixture",
    "LinearMap",
    "Mask",
    "Operator",
    "conjugate_residuals",
    "ddnm",
    "ddnm_plus",
    "diffpir",
    "dps",
    "gaussian_blur",
    "linear",
    "mmps",
    "moments",
    "pigdm",
    "posterior",
    "project",
    "pseudo_inverse",
    "renoising",
    "repaint",
    "replacement",
]
