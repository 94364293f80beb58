"""What a compiler makes of a function on a GPU that is not there."""

import torch
from support.rehearsal.compiled import Graphs, _on_h200, fake, view_graph

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
