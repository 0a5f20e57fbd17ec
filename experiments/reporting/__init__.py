"""Tables and plots of a sweep, for `experiments.report`.

reading      the folder of a sweep and the errors in it
statistics   Student's interval; marks of the best of several means
summary      settings with their estimates, floors and conditions: the content of report.json
tables       tables as markdown, CSV and lines of text
document     report.md
compare      two sweeps, paired by equal settings and seeds
plots        curves of training, and quality against cost
"""
