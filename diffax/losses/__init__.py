"""Training losses, their weightings, and distributions of training times.

denoising_loss    score matching and flow matching, for every kind of prediction
vlb_loss          the variational bound, for learned variances (Nichol & Dhariwal 2021)
hybrid_loss       the denoising loss plus a small multiple of the variational bound
vdm_loss          the variational bound in continuous time, for learned schedules (Kingma et al. 2021)
drop_labels       random replacement of labels by the null label, for classifier-free guidance

weightings        weightings of the denoising loss: functions of log-SNR
training_times    distributions of t, and ways to draw from them
couplings         which noise belongs to which data of a batch
resampling        a distribution of t that follows past losses
"""

from diffax.losses import couplings, resampling, training_times, weightings
from diffax.losses._bounds import hybrid_loss, vdm_loss, vlb_loss
from diffax.losses._denoising import denoising_loss, drop_labels

__all__ = [
    "couplings",
    "denoising_loss",
    "drop_labels",
    "hybrid_loss",
    "resampling",
    "training_times",
    "vdm_loss",
    "vlb_loss",
    "weightings",
]
