"""CUDA graphs: work on tensors of fixed shapes that is recorded once and then launched as one operation.

An accelerator is given one operation after another, and where they are small it waits for the CPU to launch them. A
graph replays all operations of a function with the same memory addresses, so inputs are copied to where they were when
it was recorded, and results appear where they were (docs.pytorch.org/docs/stable/notes/cuda.html, CUDA Graphs).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

WARM_UP = 3  # calls of each shape before it is captured: libraries choose their kernels and take memory in these

Results = Sequence[Tensor | None]
Work = Callable[..., Results]
"""Takes tensors on one device, and returns tensors without a graph, or None in place of one."""


def can_capture(device: torch.device) -> bool:
    """Whether the device can capture graphs; if it cannot, one printed sentence says why."""
    if not hasattr(torch.get_device_module(device), "CUDAGraph"):
        _tell(f"{device.type} has none")
        return False
    try:
        one = torch.ones(8, device=device)
        stream = torch.get_device_module(device).Stream(device)
        _Captured(lambda x: (x + 1,), (one,), stream)((one,))
    except RuntimeError as refused:  # of an old driver, or of memory
        _tell(str(refused).strip().splitlines()[0])
        return False
    return True


def _tell(why: str) -> None:
    tqdm.write(f"no CUDA graphs ({why}): the run goes on without --cuda_graphs")


class Graphed:
    """A function of tensors that is captured as a graph for each set of shapes, after WARM_UP calls as usual.

    The function gets tensors that are its inputs' copies, so it must not keep or change them. Other tensors it may
    change in place, such as the statistics of BatchNorm, which have to stay where they are in memory. It must neither
    draw random numbers nor wait for the device. What it returns holds until the next call.
    Calls that are not captured yet run on the stream that captures, as libraries set themselves up for each stream. If
    a capture fails, one sentence says so, and this function is not captured again.
    """

    def __init__(self, function: Work, device: torch.device) -> None:
        self._function, self._device = function, device
        self._module = torch.get_device_module(device)
        self._stream = self._module.Stream(device)
        self._calls: dict[Any, int] = {}
        self._captured: dict[Any, _Captured] = {}
        self._failed = False

    def __call__(self, *inputs: Tensor) -> Results:
        """The function's results for these inputs."""
        if self._failed:
            return self._function(*inputs)
        shapes = tuple((each.shape, each.dtype) for each in inputs)
        if shapes not in self._captured:
            calls = self._calls[shapes] = self._calls.get(shapes, 0) + 1
            if calls <= WARM_UP:
                return self._aside(inputs)
            try:
                # A capture that fails may leave its stream the current one (torch.cuda.graph): this is set back.
                with self._module.stream(self._module.current_stream(self._device)):
                    self._captured[shapes] = _Captured(self._function, inputs, self._stream)
            except RuntimeError as refused:
                self._failed = True
                self._captured.clear()
                _tell(f"a capture failed: {str(refused).strip().splitlines()[0]}")
                return self._function(*inputs)
        return self._captured[shapes](inputs)

    def _aside(self, inputs: Sequence[Tensor]) -> Results:
        """Call the function on the stream that captures."""
        here = self._module.current_stream(self._device)
        self._stream.wait_stream(here)
        with self._module.stream(self._stream):
            results = self._function(*inputs)
        # The results' memory returns to this stream, whose next call waits for all that has used them by then.
        here.wait_stream(self._stream)
        return results


class _Captured:
    """A function captured for inputs of these shapes: a graph, and where it finds its inputs and leaves its results."""

    def __init__(self, function: Work, inputs: Sequence[Tensor], stream: Any) -> None:
        module = torch.get_device_module(inputs[0].device)
        self._inputs = [each.detach().clone() for each in inputs]
        self._graph = module.CUDAGraph()
        with module.graph(self._graph, stream=stream):
            self._results = function(*self._inputs)

    def __call__(self, inputs: Sequence[Tensor]) -> Results:
        for kept, given in zip(self._inputs, inputs, strict=True):
            kept.copy_(given)
        self._graph.replay()
        return self._results


Gradients = Callable[[Tensor, Tensor], Results]
"""(images, labels) -> the gradients of a loss with respect to parameters, in their order"""


def graphed_gradients(
    loss_of: Callable[[Tensor, Tensor], Tensor], parameters: Sequence[Tensor], device: torch.device
) -> Gradients:
    """What computes the gradients of `loss_of(images, labels)` with respect to the parameters, as a graph.

    They are those of `backward`. The parameters have to stay where they are in memory, as optimisers leave them.
    """

    def gradients(images: Tensor, labels: Tensor) -> Results:
        return torch.autograd.grad(loss_of(images, labels), parameters, allow_unused=True)

    return Graphed(gradients, device)


def graphed_forward(forward: Callable[[Tensor], Tensor], device: torch.device) -> Callable[[Tensor], Tensor]:
    """A forward pass without gradients, images -> logits, as a graph. The logits are the caller's to keep."""
    graphed = Graphed(lambda images: (forward(images),), device)

    def pass_(images: Tensor) -> Tensor:
        (logits,) = graphed(images)
        assert logits is not None
        return logits.clone()

    return pass_


def set_gradients(optimizer: torch.optim.Optimizer, gradients: Results) -> None:
    """Give the optimiser's parameters these gradients, in place of those that they have."""
    for parameter, gradient in zip(optimizer.param_groups[0]["params"], gradients, strict=True):
        parameter.grad = gradient
