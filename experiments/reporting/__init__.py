"""Tables and plots of a sweep: what `experiments.report` is made of.

reading      the folder of a sweep, and what is wrong in it
statistics   Student's interval; which of several means are best
summary      settings, their estimates, floors and conditions: what report.json holds
tables       the same as markdown, CSV and lines of text
compare      two sweeps, paired by equal settings and seeds
plots        curves of training, and quality against cost
"""
