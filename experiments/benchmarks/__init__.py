"""The parts of `python -m experiments.benchmark`.

loop           the sampling loop around a network, beside the network alone
samplers       the command: flags, runs and output files
rows           the samplers, and the cost of their steps
problems       distributions, schedules, starts, exact answers, step grids
accuracy       error against the exact flow map
distributions  error in distribution of the samplers with noise
speed          compile time, time of a step, overhead beside other libraries
peers          the samplers of k-diffusion and diffusers, where they are installed
seeds          several seeds trained by one program, beside a command for each
report         Markdown, JSON and plot
"""
