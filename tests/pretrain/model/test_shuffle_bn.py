import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from moco_d2.pretrain.model.dictionary import Queue
from moco_d2.pretrain.model.encoder import build_encoder
from moco_d2.pretrain.model.moco import MoCo
from moco_d2.pretrain.model.shuffle_bn import SplitBatchNorm2d, encode_shuffled, norm_layer

CHANNELS = 3


def split_norm(splits: int) -> SplitBatchNorm2d:
    norm = SplitBatchNorm2d(CHANNELS, num_splits=splits, momentum=0.2, eps=1e-3)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    nn.init.normal_(norm.running_mean)
    nn.init.uniform_(norm.running_var, 0.5, 2)
    return norm


def plain_norm(like: SplitBatchNorm2d) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(CHANNELS, momentum=like.momentum, eps=like.eps)
    norm.load_state_dict(like.state_dict())
    return norm


@pytest.mark.parametrize("splits", [1, 2, 4])
def test_split_batchnorm_is_that_many_batchnorms(splits):
    split = split_norm(splits)
    separate = [plain_norm(split) for _ in range(splits)]
    for _ in range(2):  # the second call starts from the averaged running statistics
        x, weight = torch.randn(2, 8, CHANNELS, 5, 5)
        x.requires_grad_()
        y = x.detach().clone().requires_grad_()
        found = split(x)
        groups = y.split(8 // splits)
        wanted = torch.cat([norm(group) for norm, group in zip(separate, groups, strict=True)])
        torch.testing.assert_close(found, wanted)

        split.zero_grad()
        (found * weight).sum().backward()
        for norm in separate:
            norm.zero_grad()
        (wanted * weight).sum().backward()
        torch.testing.assert_close(x.grad, y.grad)
        for name in ("weight", "bias"):
            total = sum(getattr(norm, name).grad for norm in separate)
            torch.testing.assert_close(getattr(split, name).grad, total)
        for name in ("running_mean", "running_var"):
            mean = torch.stack([getattr(norm, name) for norm in separate]).mean(dim=0)
            torch.testing.assert_close(getattr(split, name), mean)
            for norm in separate:
                getattr(norm, name).copy_(mean)
    assert split.num_batches_tracked == 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_what_is_compiled_normalizes_as_the_groups_one_by_one(monkeypatch, dtype, layout):
    x, weight = torch.randn(2, 8, CHANNELS, 5, 5, dtype=dtype)
    one_by_one, at_once = split_norm(4), split_norm(4)
    at_once.load_state_dict(one_by_one.state_dict())
    found = []
    for norm in (one_by_one, at_once):
        images = x.contiguous(memory_format=layout).requires_grad_()
        out = norm(images).relu_()  # as in a ResNet
        (out * weight).sum().backward()
        gradients = [images.grad, norm.weight.grad, norm.bias.grad]
        found.append([out, *gradients, *norm.buffers()])
        assert out.is_contiguous(memory_format=layout)
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    # PyTorch's kernel rounds a gradient to bfloat16 more than once.
    tolerance = {} if dtype == torch.float32 else {"rtol": 2e-2, "atol": 2e-2}
    for mine, theirs in zip(*found, strict=True):
        torch.testing.assert_close(mine, theirs, **tolerance)


def test_a_compiler_makes_one_graph_of_the_groups():
    torch._dynamo.reset()
    norm, plain = split_norm(4), split_norm(4)
    plain.load_state_dict(norm.state_dict())
    compiled = torch.compile(
        nn.Sequential(norm, nn.ReLU(inplace=True)),
        backend="aot_eager",
        fullgraph=True,
        dynamic=False,
    )
    values, weight = torch.randn(2, 8, CHANNELS, 5, 5)
    x, y = (values.clone().requires_grad_() for _ in range(2))
    out, wanted = compiled(x), plain(y).relu()
    for one, leaf in ((out, x), (wanted, y)):
        (one * weight).sum().backward()
        assert leaf.grad is not None
    torch.testing.assert_close(out, wanted)
    torch.testing.assert_close(x.grad, y.grad)
    torch.testing.assert_close(norm.state_dict(), plain.state_dict())
    for mine, theirs in zip(norm.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad)


def test_split_batchnorm_evaluates_as_plain_batchnorm():
    split = split_norm(4).eval()
    x = torch.randn(5, CHANNELS, 4, 4)  # five images: evaluation needs no groups
    assert torch.equal(split(x), plain_norm(split).eval()(x))


def test_split_batchnorm_refuses_a_batch_it_cannot_divide():
    with pytest.raises(ValueError, match="6 images cannot be split into 4"):
        split_norm(4)(torch.randn(6, CHANNELS, 4, 4))


def test_one_split_is_plain_batchnorm():
    assert norm_layer(1) is nn.BatchNorm2d
    split, plain = norm_layer(4)(CHANNELS), norm_layer(1)(CHANNELS)
    assert split.num_splits == 4
    assert (split.momentum, split.eps) == (plain.momentum, plain.eps) == (0.1, 1e-5)


def test_encode_shuffled_returns_embeddings_in_the_original_order():
    images = torch.arange(12.0).reshape(12, 1, 1, 1)
    orders = []

    def encode(x):
        orders.append(x.flatten().tolist())
        return torch.stack([x.flatten(), -x.flatten()], dim=1)

    for _ in range(3):
        found = encode_shuffled(encode, images)
        assert found.tolist() == [[i, -i] for i in range(12)]
    assert all(sorted(order) == list(range(12)) for order in orders)
    assert len({tuple(order) for order in orders}) == 3  # a new order each time


@pytest.mark.parametrize(
    "view",
    [
        lambda x: x.permute(0, 2, 1, 3),
        lambda x: x[..., ::2],
        lambda x: x[:, :4],
        lambda x: x.transpose(2, 3),
        lambda x: x[:, :1].expand(-1, 4, -1, -1),
    ],
)
def test_any_strides_are_normalized(view):
    torch.manual_seed(0)
    x = view(torch.randn(4, 6, 8, 10, dtype=torch.float64)).detach()
    channels = x.shape[1]
    norm = SplitBatchNorm2d(channels, num_splits=2).double()
    plain = [copy.deepcopy(norm) for _ in range(2)]
    ours, theirs = x.clone().requires_grad_(), x.contiguous().requires_grad_()
    grad = torch.randn(channels, 1, 1, dtype=torch.float64).expand(*x.shape)
    out = norm(view_like(ours, x))
    wanted = torch.cat(
        [
            F.batch_norm(part, None, None, one.weight, one.bias, training=True)
            for part, one in zip(theirs.chunk(2), plain, strict=True)
        ]
    )
    torch.testing.assert_close(out, wanted)
    out.backward(grad), wanted.backward(grad)
    torch.testing.assert_close(ours.grad, theirs.grad)
    weights = sum(one.weight.grad for one in plain)
    torch.testing.assert_close(norm.weight.grad, weights)


def view_like(values: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Values with the strides of x, where no two of its elements share memory."""
    if 0 in x.stride():
        return values
    return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype).copy_(values)


def test_one_value_per_channel_and_group_is_refused():
    with pytest.raises(ValueError, match="more than 1 value per channel and group"):
        SplitBatchNorm2d(4, num_splits=4)(torch.randn(4, 4, 1, 1))


def small_moco(splits: int) -> MoCo:
    encoder = build_encoder("resnet18", dim=8, norm_layer=norm_layer(splits))
    return MoCo(encoder, Queue(dim=8, size=16), momentum=0.9, temperature=0.2)


def query_of(model: MoCo, images: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return F.normalize(copy.deepcopy(model.encoder_q)(images), dim=1)


def test_no_leak_query_and_key_meet_different_batch_statistics_with_splits():
    """The same weights encode the same images: only BatchNorm's groups can tell them apart."""
    torch.manual_seed(0)
    model, images = small_moco(splits=4), torch.randn(8, 3, 32, 32)
    assert model.needs_shuffle and not model.may_leak
    similarity = (query_of(model, images) * model.encode_keys(images)).sum(dim=1).detach()
    assert similarity.min() < 0.99


def test_the_leak_is_there_without_splits():
    torch.manual_seed(0)
    model, images = small_moco(splits=1), torch.randn(8, 3, 32, 32)
    assert model.may_leak
    similarity = (query_of(model, images) * model.encode_keys(images)).sum(dim=1).detach()
    torch.testing.assert_close(similarity, torch.ones(8))
