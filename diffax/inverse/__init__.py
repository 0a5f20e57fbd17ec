r"""Inverse problems: samples of x0 given a measurement y = A x0 + std n, n ~ N(0, I), with the denoiser of the prior.

An operator A is a pytree with linear functions. A method wraps the denoiser, or the sampler if it also changes x or the
noise. Methods work with any denoiser and any sampler, and compose with guidance.

    operators      Mask, BoxDownsample, Blur, gaussian_blur, linear (any linear function, by its transpose)

    method        wraps     x0 becomes, or x_s becomes                                             noise of y  products
    ddnm          denoiser  x0 + A^+ (y - A x0)                                                    none        -
    diffpir       denoiser  x0 + A^T (A A^T + rho I)^-1 (y - A x0)                                 std         -
    pigdm         denoiser  x0 + sigma^2/alpha J^T A^T (r^2 A A^T + std^2 I)^-1 (y - A x0)         std         1
    mmps          denoiser  x0 + V A^T (A V A^T + std^2 I)^-1 (y - A x0), V = sigma^2/alpha J^T    std         many
    replacement   sampler   alpha_s y + sigma_s z in the known entries                             none        -
    repaint       sampler   as replacement, on a grid from `times.jumps`                           none        -
    dps           sampler   x_s - scale d|y - A x0|/dx_t                                           any         1
    ddnm_plus     -         as ddnm, and the noise of y replaces noise of the sampler              std         -
    renoising     -         the renoising of DiffPIR, for `diffpir`                                -           -

`ddnm_plus` and `renoising` are samplers themselves. J = d x0 / d x; "products" counts the products with J^T in a call,
which are its cost besides the network itself.

Apply clipping and guidance first: wrap the denoiser that is already guided and clipped. Methods without products use
only its x0. pigdm, mmps and dps also use J. J is 0 where x0 is clipped, so that the residuals of clipped entries have
no effect, and guidance makes J less symmetric. The correction of a method may leave the range of the data;
`clip_static` around the method bounds it.

`pigdm` is exact for data ~ N(m, v I), and `mmps` for any Gaussian. All other methods are biased, even there.
`posterior` gives the exact distribution for Gaussian and mixture priors; docs/inverse/exact.md has the error of each
method against it.
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
