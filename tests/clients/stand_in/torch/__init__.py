"""What guidellm and the packaging of vLLM's bench client need of PyTorch. The package itself has four gigabytes.

guidellm loops over a data set with it; vLLM's `setup.py` asks which GPU it was built for, and here it is none. Only clients
of the tests see this, and no part of them that talks to a server. Without a version `transformers` does not take it for
PyTorch.
"""

import sys
import types

from . import loading

Generator = loading.Generator


def _module(name, **members):
    """A module `torch.NAME` with these members, which its parent knows too."""
    module = types.ModuleType(f"{__name__}.{name}")
    module.__dict__.update(members)
    sys.modules[module.__name__] = module
    parent, _, own = module.__name__.rpartition(".")
    setattr(sys.modules[parent], own, module)


_module("version", cuda=None, hip=None)
_module("utils")
_module("utils.cpp_extension", CUDA_HOME=None, ROCM_HOME=None)
_module(
    "utils.data",
    DataLoader=loading.DataLoader,
    IterableDataset=loading.IterableDataset,
    # Items are made in the process that asks for them.
    get_worker_info=lambda: None,
)
_module("utils.data.dataset", IterableDataset=loading.IterableDataset)
_module("utils.data.dataloader", DataLoader=loading.DataLoader)
