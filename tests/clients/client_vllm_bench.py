"""`vllm bench serve`, without the engine that is installed along with it.

    client_vllm_bench.py --backend openai --base-url URL --model NAME ...    (the flags of `vllm bench serve`)

The client's own modules run as they are: arguments, data sets, tokenizer, requests, arrival times, statistics. What they
import of PyTorch and of vLLM's engine is empty here; touching any of it ends with an error, it is never made up.
"""

import importlib
import importlib.abc
import importlib.machinery
import sys
import types

# The engine's side of what the client imports.
EMPTY = (
    "torch", "triton", "zmq", "vllm.env_override", "vllm.lora", "vllm.multimodal", "vllm.inputs", "vllm.platforms", "vllm.plugins",
    "vllm.utils.torch_version", "vllm.utils.torch_utils", "vllm.distributed",
)  # fmt: skip


class Untouchable(type):
    """Names of an empty module: good for annotations, base classes and decorators, for nothing else."""

    def __getattr__(cls, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return Untouchable(name, (), {})

    def __call__(cls, *arguments, **named):
        if len(arguments) == 1 and not named and isinstance(arguments[0], (types.FunctionType, type)):
            return arguments[0]
        raise NotImplementedError(f"{cls.__name__} belongs to vLLM's engine, which is not installed")


class EmptyModule(types.ModuleType):
    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return Untouchable(name, (), {})


class EmptyModules(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name, path=None, target=None):
        if any(name == root or name.startswith(f"{root}.") for root in EMPTY):
            return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec):
        return EmptyModule(spec.name)

    def exec_module(self, module):
        pass


def main():
    sys.meta_path.insert(0, EmptyModules())
    # Logging asks whether this is the first of several processes.
    ranks = importlib.import_module("vllm.distributed.parallel_state")
    ranks.is_local_first_rank = ranks.is_global_first_rank = lambda: True
    from vllm.benchmarks.serve import add_cli_args
    from vllm.benchmarks.serve import main as bench
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser = FlexibleArgumentParser(prog="vllm bench serve")
    add_cli_args(parser)
    bench(parser.parse_args())


if __name__ == "__main__":
    main()
