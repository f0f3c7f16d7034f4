"""Engines: what runs the forward pass behind protocol.Engine. reference.py is PyTorch, native.py compiled code."""
