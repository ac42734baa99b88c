"""CUDA graphs on a CPU, as far as they can be had there: operations are recorded, and replayed at the same addresses.

As on CUDA, what is captured is not computed, inputs are read where they were, and results appear where they were.
"""

import contextlib

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

replays = []
"""one number of operations for each replay"""


class Graph(TorchDispatchMode):
    """What torch.cuda.CUDAGraph is for CUDA."""

    def __init__(self):
        super().__init__()
        self.calls, self.made, self.before = [], set(), {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        # The schema of native_batch_norm does not tell that it changes the statistics.
        if func._schema.is_mutable or func is torch.ops.aten.native_batch_norm.default:
            for each in tree_leaves((args, kwargs)):
                if isinstance(each, Tensor) and address(each) not in self.made:
                    self.before.setdefault(address(each), (each, each.detach().clone()))
        out = func(*args, **kwargs)
        if not func._schema.is_mutable and not any(each.alias_info for each in func._schema.returns):
            self.made |= {address(each) for each in tree_leaves(out) if isinstance(each, Tensor)}
        self.calls.append((func, args, kwargs, out))
        return out

    def end(self):
        """Nothing has been computed: what was changed is as it was, and what was made holds no numbers."""
        with torch.no_grad():
            for each, value in self.before.values():
                each.copy_(value)
            for *_, out in self.calls:
                for each in tree_leaves(out):
                    if isinstance(each, Tensor) and address(each) in self.made and each.is_floating_point():
                        each.fill_(torch.nan)

    def replay(self):
        with torch.no_grad():
            for func, args, kwargs, out in self.calls:
                again = func(*args, **kwargs)
                for old, new in zip(tree_leaves(out), tree_leaves(again), strict=True):
                    if isinstance(old, Tensor) and old.data_ptr() != new.data_ptr():
                        old.copy_(new)
        replays.append(len(self.calls))


def address(tensor):
    return tensor.untyped_storage().data_ptr()


@contextlib.contextmanager
def capture(graph, stream=None):
    """What torch.cuda.graph is for CUDA."""
    with graph:
        yield
    graph.end()


def on_cpu(patch):
    """CPUs have graphs, until the monkeypatch is undone."""
    replays.clear()
    patch.setattr(torch.cpu, "CUDAGraph", Graph, raising=False)
    patch.setattr(torch.cpu, "graph", capture, raising=False)
