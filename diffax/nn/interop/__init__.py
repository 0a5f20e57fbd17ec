"""Pretrained weights of other libraries, read from safetensors files and never from pickle files."""
