"""A run: its folder, settings, logs, devices and processes."""
