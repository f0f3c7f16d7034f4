"""Engines: what runs the forward pass behind generate.py. reference.py is PyTorch; native code comes beside it."""
