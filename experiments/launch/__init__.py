"""Training on other machines: start, watch, resume after preemption."""
