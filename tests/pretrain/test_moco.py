"""The package's training step against an independent transcription of the paper's Algorithm 1."""

import pytest
import torch
import torch.nn.functional as F
from detectron2.utils.events import EventStorage

from moco_d2.pretrain.dictionary import Queue
from moco_d2.pretrain.engine import Pretrainer
from moco_d2.pretrain.moco import MoCo

STEPS, BATCH, DIM, SIZE = 20, 8, 6, 20  # 20 keys: the queue wraps within a batch
TOLERANCE = 1e-9  # in double precision; the claim is 1e-6


class Algorithm1:
    """The paper's pseudocode, line by line; nothing of the package, nothing of torch.optim."""

    def __init__(self, network: dict[str, torch.Tensor], queue: torch.Tensor, *, m, t):
        trained = [name for name in network if "running" not in name and "num_" not in name]
        self.f_q = {name: network[name].clone() for name in trained}
        self.f_k = {name: network[name].clone() for name in trained}
        self.bn_q, self.bn_k = (
            {name: network[f"bn.running_{name}"].clone() for name in ("mean", "var")}
            for _ in range(2)
        )
        self.queue = [column.clone() for column in queue.T]  # oldest first
        self.m, self.t = m, t
        self.velocity: dict[str, torch.Tensor] = {}

    @staticmethod
    def forward(f, bn, x):
        x = F.conv2d(x, f["conv.weight"], f["conv.bias"])
        x = F.batch_norm(x, bn["mean"], bn["var"], f["bn.weight"], f["bn.bias"], training=True)
        x = x.clamp(min=0).flatten(2).sum(2) / x[0, 0].numel()
        if "fc.2.weight" in f:
            x = (x @ f["fc.0.weight"].T + f["fc.0.bias"]).clamp(min=0)
            x = x @ f["fc.2.weight"].T + f["fc.2.bias"]
        else:
            x = x @ f["fc.weight"].T + f["fc.bias"]
        return x / (x**2).sum(1, keepdim=True).sqrt()

    def step(self, x_q, x_k, *, lr, momentum, weight_decay):
        leaves = {name: p.clone().requires_grad_() for name, p in self.f_q.items()}
        q = self.forward(leaves, self.bn_q, x_q)
        k = self.forward(self.f_k, self.bn_k, x_k)
        l_pos = (q * k).sum(1) / self.t
        l_neg = q @ torch.stack(self.queue).T / self.t
        loss = (torch.cat([l_pos[:, None], l_neg], 1).logsumexp(1) - l_pos).mean()
        gradients = dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))
        for name, gradient in gradients.items():
            d = gradient + weight_decay * self.f_q[name]
            if name in self.velocity:
                d = momentum * self.velocity[name] + d
            self.velocity[name] = d
            self.f_q[name] = self.f_q[name] - lr * d
            self.f_k[name] = self.m * self.f_k[name] + (1 - self.m) * self.f_q[name]
        self.queue = (self.queue + [key.clone() for key in k])[len(k) :]
        return loss.detach(), gradients


@pytest.fixture
def trainer(make_config, small_network, monkeypatch):
    """Function: packaged config -> its trainer, around the small network, in double precision.

    So a difference is one of the algorithms and not float32's rounding (4e-6 after 20 steps).
    """
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)

    def build(config):
        torch.manual_seed(3)
        overrides = {
            "MOCO.ENCODER.DIM": DIM,
            "MOCO.DICTIONARY.SIZE": SIZE,
            "MOCO.BN_SPLITS": 1,
        }
        trainer = Pretrainer(make_config(overrides, config=config))
        trainer.model.double()
        return trainer

    return build


def assert_same(found, wanted):
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=TOLERANCE, msg=name)


@pytest.mark.parametrize(
    ("config", "temperature"),
    [("moco_v1_R50_200ep.yaml", 0.07), ("moco_v2_R50_200ep.yaml", 0.2)],
)
def test_a_training_step_is_algorithm_1(trainer, config, temperature):
    trainer = trainer(config)
    model = trainer.model
    reference = Algorithm1(
        model.encoder_q.state_dict(), model.dictionary.queue, m=0.999, t=temperature
    )
    generator = torch.Generator().manual_seed(0)
    views = torch.randn(STEPS, 2, BATCH, 3, 6, 6, generator=generator).double()
    trainer._batches_iterator = iter([{"query": q, "key": k} for q, k in views])
    start = {name: p.clone() for name, p in model.encoder_k.named_parameters()}
    with EventStorage() as storage:
        for step, (q, k) in enumerate(views, start=1):
            trainer.run_step()
            loss, gradients = reference.step(q, k, lr=0.03, momentum=0.9, weight_decay=1e-4)

            assert storage.latest()["total_loss"][0] == pytest.approx(loss.item(), abs=TOLERANCE)
            assert_same({n: p.grad for n, p in model.encoder_q.named_parameters()}, gradients)
            assert_same(dict(model.encoder_q.named_parameters()), reference.f_q)
            assert_same(dict(model.encoder_k.named_parameters()), reference.f_k)
            for encoder, bn in (
                (model.encoder_q, reference.bn_q),
                (model.encoder_k, reference.bn_k),
            ):
                found = {"mean": encoder.bn.running_mean, "var": encoder.bn.running_var}
                assert_same(found, bn)
            pointer = model.dictionary.queue_ptr.item()
            assert pointer == step * BATCH % SIZE
            oldest_first = model.dictionary.queue.roll(-pointer, dims=1)
            assert_same({"queue": oldest_first.T}, {"queue": torch.stack(reference.queue)})
    # What is compared has moved by far more than the tolerance.
    moved = max((reference.f_k[name] - start[name]).abs().max() for name in start)
    assert moved > 1e-3


@pytest.fixture
def model(small_network) -> MoCo:
    return MoCo(small_network(DIM), Queue(dim=DIM, size=SIZE), momentum=0.9, temperature=0.2)


def test_pretext_accuracy_is_the_share_of_queries_nearest_to_their_own_key(model):
    batch = {name: torch.randn(BATCH, 3, 6, 6) for name in ("query", "key")}
    with torch.no_grad():
        queries = F.normalize(model.encoder_q(batch["query"]), dim=1)
        keys = F.normalize(model.encoder_k(batch["key"]), dim=1)
        for rival in (-queries[0], queries[0], keys[3]):
            model.dictionary.queue.copy_(rival[:, None].expand(DIM, SIZE))
            own, other = (queries * keys).sum(1), queries @ rival
            wanted = sum(a > b for a, b in zip(own.tolist(), other.tolist(), strict=True)) / BATCH
            assert model(batch)["pretext_accuracy"].item() == pytest.approx(wanted)


def test_no_gradient_reaches_the_key_encoder_and_it_starts_as_a_copy(model):
    for q, k in zip(model.encoder_q.parameters(), model.encoder_k.parameters(), strict=True):
        assert torch.equal(q, k) and q.data_ptr() != k.data_ptr()
    batch = {name: torch.randn(BATCH, 3, 6, 6) for name in ("query", "key")}
    model(batch)["loss_contrastive"].backward()
    assert all(p.grad is None for p in model.encoder_k.parameters())
    assert all(p.grad is not None for p in model.encoder_q.parameters())


def test_similarities_stay_in_float32_under_autocast(model):
    seen = []
    logits = model.dictionary.logits
    model.dictionary.logits = lambda q, k: seen.append(logits(q, k)) or seen[-1]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model({name: torch.randn(BATCH, 3, 6, 6) for name in ("query", "key")})
    assert seen[0].dtype == torch.float32
    # bf16 has 8 significant bits: rounding to it would change these.
    assert not torch.equal(seen[0], seen[0].bfloat16().float())
