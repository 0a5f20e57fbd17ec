"""Engines that several samplers share; docs/how_it_works.md explains them.

forms     ways to write the probability-flow ODE as carry + integral
stages    single-step methods: each step makes its own intermediate calls
adams     multistep methods: a polynomial through the integrands of earlier calls
pseudo    PNDM: classical multistep weights for eps, with the DDIM step as transfer
"""
