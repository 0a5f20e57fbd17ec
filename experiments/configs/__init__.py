"""One file an experiment; its docstring gives command, hardware, time and the metric that was reached."""
