"""What the samplers have in common.

forms     ways to write the probability-flow ODE as carry + integral
stages    single-step methods: every step makes its own intermediate calls
adams     multistep methods: a polynomial through earlier calls
pseudo    PNDM's classical weights, moved by DDIM
"""
