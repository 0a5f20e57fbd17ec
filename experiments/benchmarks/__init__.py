"""What `python -m experiments.benchmark` measures.

loop        the sampling loop around a network, beside the network alone
samplers    the command: flags, what is run, what is written
rows        the samplers, and what their steps cost
problems    laws, schedules, starts, exact answers, step grids
accuracy    error against the exact flow map
law         error in law of the samplers with noise
speed       compile time, time of a step, overhead beside other libraries
peers       the samplers of k-diffusion and diffusers, where they are installed
seeds       several seeds trained by one program, beside a command for each
report      markdown, JSON and plot
"""
