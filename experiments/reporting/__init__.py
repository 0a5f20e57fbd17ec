"""Tables and plots of a sweep, for `experiments.report`."""
