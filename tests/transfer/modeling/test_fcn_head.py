import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model
from torch import nn
from torch.nn import functional as F

from moco_d2.config.load import load_config
from moco_d2.errors import UserError
from moco_d2.transfer.modeling.fcn_head import FCNHead, to_pixels

SMALL = [
    *("MODEL.DEVICE", "cpu", "MODEL.RESNETS.NORM", "BN", "MODEL.RESNETS.WIDTH_PER_GROUP", "4"),
    *("MODEL.SEM_SEG_HEAD.NORM", "BN", "MODEL.SEM_SEG_HEAD.CONVS_DIM", "8"),
]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return build_model(load_config("voc_semantic_random.yaml", SMALL)).eval()


def small_head(**options):
    arguments = {"num_classes": 3, "conv_dim": 8, "norm": "BN", "ignore_value": 255} | options
    shapes = {"res5": ShapeSpec(channels=5, stride=16)}
    return FCNHead(shapes, in_feature="res5", **arguments)


@torch.no_grad()
def test_the_layers_are_the_papers():
    model = build_model(load_config("voc_semantic_random.yaml", SMALL[:6])).eval()
    head = model.sem_seg_head
    nn.init.normal_(head.classifier.weight)
    features = torch.randn(1, 2048, 9, 11)
    x = features
    for conv in head.convs:
        assert conv.weight.shape == (256, x.shape[1], 3, 3)
        nn.init.uniform_(conv.norm.running_var, 0.5, 2)
        x = F.relu(conv.norm(F.conv2d(x, conv.weight, padding=6, dilation=6)))
    expected = F.conv2d(x, head.classifier.weight, head.classifier.bias)
    assert expected.shape == (1, 21, 9, 11)
    torch.testing.assert_close(head.layers({"res5": features}), expected)
    assert len(head.convs) == 2


def test_a_crop_of_the_paper_is_interpolated_with_aligned_corners():
    grid = torch.randn(2, 3, 33, 33)
    expected = F.interpolate(grid, (513, 513), mode="bilinear", align_corners=True)
    torch.testing.assert_close(to_pixels(grid, 16, (513, 513)), expected, rtol=0, atol=0)


def test_every_cell_is_at_its_pixel_whatever_the_size():
    grid = torch.randn(2, 3, 4, 7)
    pixels = to_pixels(grid, 16)
    assert pixels.shape == (2, 3, 64, 112)
    torch.testing.assert_close(pixels[..., ::16, ::16], grid)
    torch.testing.assert_close(pixels[..., 8, 0], (grid[..., 0, 0] + grid[..., 1, 0]) / 2)
    assert torch.equal(pixels[..., 63, :], pixels[..., 48, :])
    assert torch.equal(to_pixels(grid, 16, (50, 97)), pixels[..., :50, :97])
    # As a part of a larger image, only what lies behind the last cell differs.
    larger = to_pixels(F.pad(grid, (0, 2, 0, 2)), 16)
    torch.testing.assert_close(larger[..., :49, :97], pixels[..., :49, :97])


@pytest.mark.parametrize(("width", "symmetric"), [(113, True), (112, False), (120, False)])
@torch.no_grad()
def test_the_networks_cells_are_where_they_are_taken_to_be(model, width, symmetric):
    """With kernels that mirroring does not change, it mirrors the output of a symmetric grid of
    cells: one that begins at the first pixel and ends at the last one.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.weight.copy_((module.weight + module.weight.flip(-1)) / 2)
    images = torch.randn(1, 3, 49, width, generator=torch.Generator().manual_seed(1))

    def logits(pixels):
        return model.sem_seg_head(model.backbone(pixels))[0][..., :49, :width]

    mirrored = logits(images.flip(-1)).flip(-1)
    difference = (logits(images) - mirrored).abs().max() / mirrored.std()
    assert (difference < 1e-3) == symmetric


@pytest.mark.parametrize("size", [(50, 37), (64, 64), (33, 129)])
@torch.no_grad()
def test_an_image_is_evaluated_at_its_own_size(model, size):
    image = torch.randint(0, 256, (3, *size), dtype=torch.uint8)
    (output,) = model([{"image": image}])
    assert output["sem_seg"].shape == (21, *size)
    normalized = (image - model.pixel_mean) / model.pixel_std
    logits, _ = model.sem_seg_head(model.backbone(normalized[None]))
    torch.testing.assert_close(output["sem_seg"], logits[0, :, : size[0], : size[1]])


def test_the_loss_is_the_mean_over_the_pixels_that_are_not_ignored():
    head = small_head(loss_weight=2.0)
    logits = torch.randn(2, 3, 3, 4)
    targets = torch.randint(0, 3, (2, 41, 55))
    targets[:, :, 20:40] = 255
    pixels = to_pixels(logits, 16)[..., :41, :55]
    expected = F.cross_entropy(pixels, targets, ignore_index=255)
    torch.testing.assert_close(head.losses(logits, targets)["loss_sem_seg"], 2 * expected)


def test_a_batch_without_a_labeled_pixel_costs_nothing():
    head = small_head().train()
    features = {"res5": torch.randn(2, 5, 3, 3)}
    result, losses = head(features, torch.full((2, 40, 40), 255))
    assert result is None
    assert losses["loss_sem_seg"].item() == 0
    losses["loss_sem_seg"].backward()
    assert all(torch.isfinite(p.grad).all() for p in head.parameters())


def test_it_learns():
    """A quadrant of another class than the rest."""
    torch.manual_seed(0)
    head = small_head().train()
    features = {"res5": torch.randn(2, 5, 4, 4)}
    targets = torch.zeros(2, 64, 64, dtype=torch.long)
    targets[:, :32, :32] = 2
    optimizer = torch.optim.SGD(head.parameters(), lr=0.5, momentum=0.9)
    losses = []
    for _ in range(30):
        loss = head(features, targets)[1]["loss_sem_seg"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] > 1.0
    assert losses[-1] < 0.2


@pytest.mark.parametrize("features", ["['res4']", "['res5', 'res5']", "[]"])
def test_it_reads_one_feature_of_the_backbone(features):
    overrides = [*SMALL, "MODEL.SEM_SEG_HEAD.IN_FEATURES", features]
    cfg = load_config("voc_semantic_random.yaml", overrides)
    with pytest.raises(UserError, match=r"reads one feature .* set it to one of \['res5'\]"):
        build_model(cfg)
