"""One file for each experiment; its docstring has the command, hardware, time and the measured metric."""
