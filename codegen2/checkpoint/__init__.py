"""Checkpoints: from files in any released layout to weights in ours, and out into the layouts others read.

A name becomes a directory (hub.py), its files named tensors (reader.py, formats/; no pickle is run), these weights in
our layout (layout.py, weights.py), and those a model: load.py for PyTorch, native/ for the compiled engine. write.py
writes directories, convert.py the forms that others read. Only load.py imports torch.
"""
