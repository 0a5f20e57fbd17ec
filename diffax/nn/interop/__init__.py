"""Pretrained weights of other libraries, from safetensors files: never pickle."""
