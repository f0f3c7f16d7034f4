"""Checkpoints: from files in any released layout to weights in ours, and out into the layouts others read.

hub.py         a name to a local directory
reader.py      a directory to named tensors, by safetensors_file.py and torch_archive.py (no pickle is run)
layout.py      names, shapes and the order of QKV rows: layout accidents end here
weights.py     a directory to tensors in our layout, streamed; free of torch
selfcheck.py   was the QKV grouping guessed right? free of torch
load.py        a directory to a CodeGen2 model; the one module here that imports torch
convert.py     a directory to another, a block of rows at a time; hf_tokenizer.py writes its tokenizer
native_form.py  weights packed for the compiled engine; native_cache.py keeps a directory of them for each model
room.py        free memory and disk
tensors.py     element types
"""
