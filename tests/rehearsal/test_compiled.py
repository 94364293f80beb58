"""What a compiler makes of a function on a GPU that is not there, and what it costs without."""

import torch
from support.rehearsal.compiled import _LAYOUT, Graphs, _on_h200, fake, view_graph
from support.rehearsal.device import rehearsal

from moco_d2.pretrain.augmentation.batched import DeviceAugmentation
from moco_d2.pretrain.augmentation.views import AUGMENTATIONS


def counted(function, *shapes) -> Graphs:
    graphs = Graphs()
    with _on_h200(), torch.no_grad():
        graphs.count(function, [fake(torch.empty(shape)) for shape in shapes])
    return graphs


def test_a_chain_of_operations_is_one_kernel_that_reads_and_writes_once():
    graphs = counted(lambda x: (2 * x + 1).relu(), (4, 1024))
    assert (graphs.kernels, graphs.bytes) == (1, 2 * 4 * 4096)


def test_the_kernels_of_libraries_and_their_bytes_are_counted():
    graphs = counted(lambda a, b: (a @ b).relu(), (64, 32), (32, 16))
    assert graphs.kernels == 2
    assert graphs.bytes == 4 * (64 * 32 + 32 * 16 + 64 * 16 + 2 * 64 * 16)


def test_a_view_on_the_device_takes_few_passes_over_memory():
    """A view of 256 images of 224 pixels may take 5 GB: 128 bytes a value."""
    size = torch.Size((16, 3, 64, 64))
    graphs = view_graph(DeviceAugmentation(AUGMENTATIONS["v2"]), size)
    assert graphs.kernels <= 12
    assert graphs.bytes < 128 * size.numel()


def test_a_view_without_a_compiler_touches_less_than_its_graph_would_step_by_step():
    """They were 850 bytes a value, 33 GB for a view of 256 images of 224 pixels."""
    crops = torch.zeros(16, 3, 64, 64, dtype=torch.uint8).contiguous(memory_format=_LAYOUT)
    with rehearsal() as counted:
        crops = crops.to("cuda")
        augmentation = DeviceAugmentation(AUGMENTATIONS["v2"])
        for _ in range(2):  # the first one also makes constants
            counted.reset()
            augmentation(crops, torch.Generator())
    assert counted.bytes.total() < 345 * crops.numel()
    assert counted.calls.total() < 130
    assert not counted.waits
