"""Rows of guidance, transforms of denoisers, consistency functions and the analytic distributions."""

import jax.numpy as jnp
from golden_inputs import BATCH, DENOISER, DIMENSIONS, GAUSSIAN, MIXTURE, array, key, times

import diffax
from diffax import analytic
from diffax.losses import weightings

S = lambda: diffax.Cosine()
FLOW = lambda: diffax.Flow()
C = lambda: DENOISER(MIXTURE(), S())  # the conditional branch
U = lambda: DENOISER(GAUSSIAN(), S())  # the unconditional branch
LABELLED = lambda x, t, label: 0.5 * x * (1 + label[:, None])
LABELS, NULL = lambda: jnp.array([0.1, 0.4, -0.3, 0.8]), 0.0
NETWORK = lambda x, t: jnp.sin(x) + 0.1 * x
WITH_VARIANCE = lambda: lambda x, t: diffax.Moments(C()(x, t), jnp.cos(x) ** 2)
KINDS = ("x0", "eps", "score", "v", "velocity", "edm")
DENOISERS = {
    "classifier_free": lambda: diffax.classifier_free_guidance(C(), U(), 2.5),
    "classifier_free-function": lambda: diffax.classifier_free_guidance(C(), U(), lambda t: 1 + 2 * t),
    "classifier_free_batched": lambda: diffax.batched_classifier_free_guidance(LABELLED, LABELS(), NULL, 2.5),
    "guide_batched": lambda: diffax.batched_guidance(
        lambda c, u: diffax.guidance_rescale(diffax.classifier_free_guidance(c, u, 7.5), c, 0.7),
        LABELLED,
        LABELS(),
        NULL,
    ),
    "autoguidance": lambda: diffax.classifier_free_guidance(C(), U(), 1.8),
    "interval": lambda: diffax.guidance_interval(diffax.classifier_free_guidance(C(), U(), 2.5), C(), 0.3, 0.8),
    "interval-log_snr": lambda: diffax.guidance_interval(U(), C(), -2.0, 1.0, of=S().log_snr),
    "rescale": lambda: diffax.guidance_rescale(diffax.classifier_free_guidance(C(), U(), 5.0), C(), 0.7),
    "rescale-v": lambda: diffax.guidance_rescale(
        diffax.classifier_free_guidance(C(), U(), 5.0), C(), 0.7, kind="v", schedule=S()
    ),
    "apg": lambda: diffax.adaptive_projected_guidance(C(), U(), 3.0),
    "apg-threshold": lambda: diffax.adaptive_projected_guidance(C(), U(), 3.0, eta=0.3, threshold=0.8),
    "classifier": lambda: diffax.classifier_guidance(U(), lambda x, t: -jnp.sum(jnp.sin(x) ** 2, 1), S(), 1.5),
    **{f"denoiser-{kind}": lambda kind=kind: diffax.denoiser(NETWORK, S(), kind) for kind in KINDS},
    "denoiser-moments": lambda: diffax.denoiser(lambda x, t: diffax.Moments(NETWORK(x, t), jnp.cos(x)), S(), "v"),
    "clip_static": lambda: diffax.denoisers.clip_static(C(), -0.8, 0.6),
    "clip_dynamic": lambda: diffax.denoisers.clip_dynamic(C(), quantile=0.7, limit=0.5),
    "reschedule": lambda: diffax.denoisers.reschedule(C(), S(), FLOW()),
    "on_x0": lambda: diffax.denoisers.on_x0(lambda d: diffax.denoisers.clip_static(d, -0.5, 0.5), WITH_VARIANCE()),
    "mean_only": lambda: diffax.denoisers.mean_only(WITH_VARIANCE()),
    "consistency_function": lambda: diffax.denoisers.consistency_function(NETWORK, S(), t_min=0.01),
    "latent_consistency_function": lambda: diffax.denoisers.latent_consistency_function(C(), num_train_steps=20),
    "centres": lambda: diffax.denoisers.centres(C(), S(), 0.2),
}
OF_LAW = {
    "denoise": lambda law, x, level: law.denoise(x, level),
    "score": lambda law, x, level: law.score(x, level),
    "score-clean": lambda law, x, level: law.score(x),
    "log_prob": lambda law, x, level: law.log_prob(x, level),
    "log_prob-clean": lambda law, x, level: law.log_prob(x),
    "sample": lambda law, x, level: law.sample(key("law"), 5),
}
FLOWS = {
    "gaussian": lambda x: GAUSSIAN().flow(x, S()(0.8), S()(0.2)),
    "mixture": lambda x: analytic.flow(S(), C(), x, 0.8, 0.2, num_steps=5),
}
WEIGHTINGS = {
    "simple": lambda: weightings.simple(),
    "min_snr": lambda: weightings.min_snr(),
    "truncated_snr": lambda: weightings.truncated_snr(),
    "p2": lambda: weightings.p2(gamma=0.5),
    "edm": lambda: weightings.edm(),
    "sigmoid": lambda: weightings.sigmoid(bias=1.0),
    "likelihood": lambda: weightings.elbo(),
}


def rows():
    """All rows of the group."""
    for name, make in DENOISERS.items():
        yield f"denoisers/{name}", lambda make=make: make()(array("x", BATCH, DIMENSIONS), times())
        yield f"denoisers/{name}/one-time", lambda make=make: make()(array("x", BATCH, DIMENSIONS), jnp.asarray(0.35))
    for name, law in {"gaussian": GAUSSIAN, "mixture": MIXTURE}.items():
        for what, f in OF_LAW.items():
            full = f"analytic/{name}/{what}"
            yield full, lambda f=f, law=law: f(law(), array("x", BATCH, DIMENSIONS), S()(times()))
    for name, f in FLOWS.items():
        yield f"analytic/flow/{name}", lambda f=f: f(array("x", BATCH, DIMENSIONS))
    for name, make in WEIGHTINGS.items():
        yield f"weightings/{name}", lambda make=make: make()(jnp.linspace(-8.0, 8.0, 9))


ROWS = dict(rows())
