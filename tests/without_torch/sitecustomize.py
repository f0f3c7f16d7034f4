"""Hide PyTorch, and what a default install lacks besides, from every Python that starts with this folder on PYTHONPATH.

`make test` runs the half of the tests that must pass without PyTorch this way, in the environment that has it. Programs
that the tests start inherit the folder, which a plugin of pytest would not reach. Not a stand-in package named torch:
importlib.util.find_spec and importlib.metadata would find that one.
"""

import sys
from importlib.machinery import PathFinder

HIDDEN = {"torch", "transformers", "peft", "accelerate", "matplotlib", "tensorboard"}


class WithoutTorch(PathFinder):
    """Find what the usual finder finds but for HIDDEN, whose modules and metadata are not there."""

    @classmethod
    def find_spec(cls, fullname, path=None, target=None):
        return None if fullname.partition(".")[0] in HIDDEN else super().find_spec(fullname, path, target)

    @classmethod
    def find_distributions(cls, *context):
        # By the folder's name, NAME-VERSION.dist-info: reading all metadata takes half a second.
        found = super().find_distributions(*context)
        return (d for d in found if d._path.name.partition("-")[0].lower() not in HIDDEN)


sys.meta_path[sys.meta_path.index(PathFinder)] = WithoutTorch
