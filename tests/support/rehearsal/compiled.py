"""What torch.compile would make of a function on a GPU that is not there: kernels and bytes.

The function is traced, differentiated, lowered and fused as on a GPU, by inductor. Only the code of
the kernels is not written. What inductor decides by the properties of a GPU, it decides for an
H200.
"""

import contextlib
import copy
import ctypes
import os
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from unittest import mock

import torch
from support.rehearsal.device import STUB
from torch import nn
from torch._dynamo.device_interface import CudaInterface
from torch._functorch.aot_autograd import aot_function, make_boxed_func
from torch._functorch.partitioners import min_cut_rematerialization_partition
from torch._inductor import compile_fx, config, scheduler
from torch._inductor.debug import DebugContext
from torch._inductor.graph import GraphLowering
from torch._inductor.virtualized import V
from torch._subclasses import FakeTensorMode

from moco_d2.pretrain.augmentation.batched import DeviceAugmentation
from moco_d2.pretrain.augmentation.normalization import Normalization

_H200 = types.SimpleNamespace(
    **{"name": "NVIDIA H200", "type": "cuda", "index": 0, "major": 9, "minor": 0, "cc": 90},
    **{"multi_processor_count": 132, "warp_size": 32, "regs_per_multiprocessor": 65536},
    **{"max_threads_per_multi_processor": 2048, "max_threads_per_block": 1024},
    **{"total_memory": 141 * 10**9, "L2_cache_size": 50 << 20, "gcnArchName": ""},
    **{"shared_memory_per_block": 48 << 10, "shared_memory_per_block_optin": 227 << 10},
)


_LAYOUT = torch.channels_last


class Graphs:
    """Counts what is compiled.

    Attributes:
        kernels: Number of kernels, with those of libraries.
        bytes: What they read and write.
    """

    def __init__(self) -> None:
        self.kernels = self.bytes = 0

    def add(self, graph: torch.fx.GraphModule, *, backward: bool, inference: bool) -> None:
        """Count the kernels of a graph of ATen operators."""
        inputs = [n.meta["val"] for n in graph.graph.nodes if n.op == "placeholder"]
        compile_fx._recursive_post_grad_passes(graph, is_inference=inference)
        lowered = GraphLowering(
            graph, example_inputs=inputs, is_backward=backward, is_inference=inference
        )
        with V.set_graph_handler(lowered), V.set_extern_kernel_nodes([]):
            lowered.run(*inputs)
            lowered._update_scheduler()
            sizes = [node.get_read_write_buffers_sizes() for node in lowered.scheduler.nodes]
        self.kernels += sum(size > 0 for size in sizes)
        self.bytes += sum(sizes)

    def count(self, function: Callable[..., Any], inputs: list[torch.Tensor]) -> None:
        """Count a function of tensors of `fake`, and its backward pass if one has a gradient."""

        def part(joint: Any, joint_inputs: Any, **options: Any) -> Any:
            compile_fx._recursive_joint_graph_passes(joint)
            parts = min_cut_rematerialization_partition(
                joint, joint_inputs, compiler="inductor", **options
            )
            for graph, backward in zip(parts, (False, True), strict=True):
                self.add(copy.deepcopy(graph), backward=backward, inference=False)
            return parts

        def infer(graph: torch.fx.GraphModule, _: Any) -> Any:
            self.add(graph, backward=False, inference=True)
            return make_boxed_func(graph.forward)

        aot_function(
            function,
            fw_compiler=lambda graph, _: make_boxed_func(graph.forward),
            inference_compiler=infer,
            partition_fn=part,
            decompositions=compile_fx.select_decomp_table(),
            keep_inference_input_mutations=True,
        )(*inputs)


def step_graphs(
    encoder: nn.Module, images: torch.Size, dtype: torch.dtype, *, keys: bool
) -> Graphs:
    """Return the graphs of a query encoder, with its backward pass, and of a key encoder."""
    tensors = dict(encoder.state_dict(keep_vars=True))
    counted = Graphs()
    with _on_h200():
        values = [fake(value) for value in tensors.values()]
        views = fake(torch.empty(images, device="meta").contiguous(memory_format=_LAYOUT))

        def encode(views: torch.Tensor, *values: torch.Tensor) -> Any:
            with torch.autocast("cuda", dtype=dtype):
                named = dict(zip(tensors, values, strict=True))
                return torch.func.functional_call(encoder, named, (views,))

        counted.count(encode, [views, *values])
        if keys:
            with torch.no_grad():
                counted.count(encode, [views, *(value.detach() for value in values)])
    return counted


def view_graph(augmentation: DeviceAugmentation | Normalization, size: torch.Size) -> Graphs:
    """Return the graph that finishes a view of `size` (N, 3, H, W)."""
    counted = Graphs()
    crops = torch.empty(size, dtype=torch.uint8).contiguous(memory_format=_LAYOUT)
    if isinstance(augmentation, DeviceAugmentation):
        drawn = augmentation.draw(len(crops), torch.Generator())
        inputs = crops, *drawn, *augmentation._constants_for(crops)
    else:
        inputs = crops, *torch.ones(2, 3, 1, 1)
    with _on_h200(), torch.no_grad():
        counted.count(augmentation.finish, [fake(value) for value in inputs])
    return counted


def fake(like: torch.Tensor) -> torch.Tensor:
    """Return a tensor of this form on the device, under a FakeTensorMode."""
    made = torch.empty_strided(like.shape, like.stride(), dtype=like.dtype, device="cuda")
    return made.requires_grad_(like.requires_grad)


@contextlib.contextmanager
def _on_h200() -> Iterator[None]:
    changes: Mapping[tuple[Any, str], Any] = {
        (torch.cuda, "get_device_properties"): lambda *_: _H200,
        (torch.cuda, "current_device"): lambda: 0,
        (torch.cuda, "device_count"): lambda: 1,
        (torch.cuda, "is_available"): lambda: False,  # no state of a driver is asked for
        (torch.cuda, "is_bf16_supported"): lambda *_, **__: True,
        (torch.cuda.amp.common, "amp_definitely_not_available"): lambda: False,
        (CudaInterface, "get_device_properties"): lambda *_: _H200,
        (CudaInterface.Worker, "get_device_properties"): lambda *_: _H200,
        (torch._C, "_select_conv_backend"): lambda *_, **__: torch._C._ConvBackend.Cudnn,
        (scheduler, "has_triton"): lambda: True,
        (torch.compiler, "is_compiling"): lambda: True,
    }
    torch._C._ensureCUDADeviceGuardSet()
    if STUB in os.environ:
        ctypes.CDLL(os.environ[STUB]).set_fake_devices(127)
    with contextlib.ExitStack() as stack:
        for (target, name), value in changes.items():
            stack.enter_context(mock.patch.object(target, name, value))
        stack.enter_context(V.set_debug_handler(DebugContext()))
        stack.enter_context(torch.autograd.set_multithreading_enabled(False))
        # It would compute constants on the device.
        stack.enter_context(config.patch(joint_graph_constant_folding=False))
        mode = stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        stack.enter_context(V.set_fake_mode(mode))
        yield
