"""Pretrained weights of other libraries. Networks are read from safetensors files and never from pickle files.

`torch_file` reads the tensors of a file that `torch.save` wrote; it builds dicts and tensors only and runs no code.
"""
