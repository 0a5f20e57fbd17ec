"""From settings to networks, objectives and models; trained models from their folders."""
