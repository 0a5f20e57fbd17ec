"""Few-step models: networks with two times, X(x, t, s) = the probability-flow ODE from t to s, and their losses.

flow_map        a network (x, t, s) -> y as the map X
map_denoiser    the same as a denoiser of three arguments
jump            the sampler: one call of a denoiser of three arguments a step
diagonal        the network at s = t: a prediction as of a diffusion model
ending          the map to a fixed time; the consistency function at s = 0
velocity        the velocity dx/dt of a network of any kind

losses          mean_flow_loss, improved_mean_flow_loss, continuous_consistency_loss, consistency_loss,
                lagrangian_loss, semigroup_loss, progressive_loss
their parts     adaptive, squared, pseudo_huber, guided
times           pairs, dyadic_pairs, levels, ect_time
measures        curvature

Three identities hold for the exact map X(x, t, s), each with a family of losses:

    Eulerian     d/dt X(x_t, t, s) = 0 along the flow     mean_flow_loss, improved_mean_flow_loss,
                                                          continuous_consistency_loss, consistency_loss (finite steps)
    Lagrangian   d/ds X(x, t, s) = velocity(X, s)         lagrangian_loss
    semigroup    X(t -> s) = X(m -> s) o X(t -> m)        semigroup_loss, progressive_loss

All draw x_t = alpha x0 + sigma eps and return (B,). The *conditional* velocity alpha' x0 + sigma' eps is that of the
draw; the *marginal* one is its mean given x_t, which a teacher has. At the exact map with the marginal velocity the
losses of derivatives are zero; with the conditional one the expectation of their gradient is.
"""

from diffax.flow_maps._consistency import consistency_loss, continuous_consistency_loss
from diffax.flow_maps._curvature import curvature
from diffax.flow_maps._jump import jump
from diffax.flow_maps._lagrangian import lagrangian_loss
from diffax.flow_maps._maps import coefficients, diagonal, ending, flow_map, map_denoiser, of_denoiser, velocity
from diffax.flow_maps._mean_flow import guided, improved_mean_flow_loss, mean_flow_loss
from diffax.flow_maps._parts import adaptive, pseudo_huber, squared
from diffax.flow_maps._semigroup import progressive_loss, semigroup_loss
from diffax.flow_maps._times import Pair, dyadic_pairs, ect_time, levels, pairs

__all__ = [
    "Pair",
    "adaptive",
    "coefficients",
    "consistency_loss",
    "continuous_consistency_loss",
    "curvature",
    "diagonal",
    "dyadic_pairs",
    "ect_time",
    "ending",
    "flow_map",
    "guided",
    "improved_mean_flow_loss",
    "jump",
    "lagrangian_loss",
    "levels",
    "map_denoiser",
    "mean_flow_loss",
    "of_denoiser",
    "pairs",
    "progressive_loss",
    "pseudo_huber",
    "semigroup_loss",
    "squared",
    "velocity",
]
