"""The training step against independent transcriptions: the paper's Algorithm 1, and the two
mechanisms it is compared with.
"""

import pytest
import torch
import torch.nn.functional as F
from detectron2.utils.events import EventStorage

from moco_d2.pretrain.model import info_nce
from moco_d2.pretrain.model.dictionary import EndToEnd, MemoryBank, Queue
from moco_d2.pretrain.model.moco import MoCo
from moco_d2.pretrain.pretrainer import Pretrainer

STEPS, BATCH, DIM, SIZE = 20, 8, 6, 20  # 20 keys: the queue wraps within a batch
IMAGES = 24  # of the tiny set
TOLERANCE = 1e-9  # in double precision; the claim is 1e-6


class Reference:
    """A contrastive training step by hand; nothing of the package, nothing of torch.optim.

    The paper's Algorithm 1 line by line; sub-classes change where the keys come from (Figure 2).
    """

    def __init__(self, model: MoCo, *, m: float, t: float):
        network = model.encoder_q.state_dict()
        trained = [name for name in network if "running" not in name and "num_" not in name]
        self.f_q = {name: network[name].clone() for name in trained}
        self.bn_q = self.statistics(network)
        self.m, self.t = m, t
        self.velocity: dict[str, torch.Tensor] = {}

    @staticmethod
    def statistics(network):
        return {name: network[f"bn.running_{name}"].clone() for name in ("mean", "var")}

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

    def info_nce(self, q, positives, negatives):
        """Eq. 1, query by query: its positive (C,) and its negatives (K, C)."""
        losses = []
        for query, positive, others in zip(q, positives, negatives, strict=True):
            similarities = torch.stack([query @ positive, *(others @ query)]) / self.t
            losses.append(similarities.exp().sum().log() - similarities[0])
        return sum(losses) / len(losses)

    def step(self, views, index, *, lr, momentum, weight_decay):
        """`views`: one (query, key) pair of image batches a direction."""
        leaves = {name: p.clone().requires_grad_() for name, p in self.f_q.items()}
        loss = sum(self.loss(leaves, query, key, index) for query, key in views)
        gradients = dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))
        for name, gradient in gradients.items():
            d = gradient + weight_decay * self.f_q[name]
            if name in self.velocity:
                d = momentum * self.velocity[name] + d
            self.velocity[name] = d
            self.f_q[name] = self.f_q[name] - lr * d
        self.end_step()
        return loss.detach(), gradients


class Algorithm1(Reference):
    def __init__(self, model, **kwargs):
        super().__init__(model, **kwargs)
        network = model.encoder_k.state_dict()
        self.f_k = {name: network[name].clone() for name in self.f_q}
        self.bn_k = self.statistics(network)
        self.queue = [column.clone() for column in model.dictionary.queue.T]  # oldest first
        self.new: list[torch.Tensor] = []

    def loss(self, leaves, query, key, index):
        q = self.forward(leaves, self.bn_q, query)
        k = self.forward(self.f_k, self.bn_k, key)
        self.new += list(k)
        return self.info_nce(q, k, [torch.stack(self.queue)] * len(q))

    def end_step(self):
        for name in self.f_q:
            self.f_k[name] = self.m * self.f_k[name] + (1 - self.m) * self.f_q[name]
        self.queue = (self.queue + self.new)[len(self.new) :]
        self.new = []

    def check(self, model):
        assert_same(dict(model.encoder_k.named_parameters()), self.f_k)
        bn = model.encoder_k.bn
        assert_same({"mean": bn.running_mean, "var": bn.running_var}, self.bn_k)
        oldest_first = model.dictionary.queue.roll(-model.dictionary.queue_ptr.item(), dims=1)
        assert_same({"queue": oldest_first.T}, {"queue": torch.stack(self.queue)})


class InstDisc(Reference):
    """Figure 2b: the positive is the image's entry in the bank, the negatives are drawn from it."""

    def __init__(self, model, **kwargs):
        super().__init__(model, **kwargs)
        self.bank = list(model.dictionary.bank.clone())
        self.new: list[tuple[int, torch.Tensor]] = []
        self.draws: list[list[int]] = []  # filled from what the package drew

    def loss(self, leaves, query, key, index):
        q = self.forward(leaves, self.bn_q, query)
        self.new += list(zip(index.tolist(), q.detach(), strict=True))
        negatives = torch.stack([self.bank[i] for i in self.draws.pop(0)])
        return self.info_nce(q, [self.bank[i] for i in index.tolist()], [negatives] * len(q))

    def end_step(self):
        for image, q in self.new:
            mixed = 0.5 * self.bank[image] + 0.5 * q
            self.bank[image] = mixed / (mixed**2).sum().sqrt()
        self.new = []

    def check(self, model):
        assert_same({"bank": model.dictionary.bank}, {"bank": torch.stack(self.bank)})


class InBatch(Reference):
    """Figure 2a: the other keys of the batch are the negatives, and have gradients."""

    def loss(self, leaves, query, key, index):
        q = self.forward(leaves, self.bn_q, query)
        k = self.forward(leaves, self.bn_q, key)
        others = [torch.cat([k[:n], k[n + 1 :]]) for n in range(len(k))]
        return self.info_nce(q, k, others)

    def end_step(self):
        pass

    def check(self, model):
        assert model.encoder_k is model.encoder_q


@pytest.fixture
def trainer(make_config, small_network, monkeypatch):
    """Function: packaged config -> its trainer, around the small network, in double precision.

    So a difference is one of the algorithms and not float32's rounding (4e-6 after 20 steps).
    """
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)

    def build(config, overrides):
        torch.manual_seed(3)
        settings = {
            "MOCO.ENCODER.DIM": DIM,
            "MOCO.DICTIONARY.SIZE": SIZE,
            "MOCO.LR_STEPS": (),  # too few epochs for them
            "MOCO.BN_SPLITS": 1,
        }
        trainer = Pretrainer(make_config({**settings, **overrides}, config=config))
        trainer.model.double()
        return trainer

    return build


@pytest.fixture
def drawn(monkeypatch):
    """What torch.randint gives from now on: the memory bank's draws, which have no other trace."""
    draws = []
    randint = torch.randint

    def record(*args, **kwargs):
        draws.append(randint(*args, **kwargs))
        return draws[-1].clone()

    monkeypatch.setattr(torch, "randint", record)
    return draws


def assert_same(found, wanted):
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=TOLERANCE, msg=name)


@pytest.mark.parametrize("symmetric", [False, True], ids=["asymmetric", "symmetric"])
@pytest.mark.parametrize(
    ("name", "reference"),
    [("Queue", Algorithm1), ("MemoryBank", InstDisc), ("EndToEnd", InBatch)],
)
@pytest.mark.parametrize(
    ("config", "temperature"),
    [("moco_v1_R50_200ep.yaml", 0.07), ("moco_v2_R50_200ep.yaml", 0.2)],
)
def test_a_training_step_is_algorithm_1(
    trainer, drawn, config, temperature, name, reference, symmetric
):
    check_training_steps(trainer, drawn, config, temperature, name, reference, symmetric)


@pytest.mark.parametrize(("name", "reference"), [("Queue", Algorithm1), ("MemoryBank", InstDisc)])
def test_a_training_step_in_tiles_is_algorithm_1(trainer, drawn, monkeypatch, name, reference):
    monkeypatch.setattr(info_nce, "TILE", 7)
    config = "moco_v2_R50_200ep.yaml"
    check_training_steps(trainer, drawn, config, 0.2, name, reference, symmetric=True)


def check_training_steps(trainer, drawn, config, temperature, name, reference, symmetric):
    trainer = trainer(config, {"MOCO.DICTIONARY.NAME": name, "MOCO.SYMMETRIC": symmetric})
    model = trainer.model
    by_hand = reference(model, m=0.999, t=temperature)
    generator = torch.Generator().manual_seed(0)
    views = torch.randn(STEPS, 2, BATCH, 3, 6, 6, generator=generator).double()
    images = [torch.randperm(IMAGES, generator=generator)[:BATCH] for _ in range(STEPS)]
    batches = [
        {"query": q, "key": k, "index": index} for (q, k), index in zip(views, images, strict=True)
    ]
    trainer._batches = iter([{**batch, "unreadable": []} for batch in batches])
    start = {name: p.clone() for name, p in model.encoder_q.named_parameters()}
    drawn.clear()
    trainer.iter = 0
    with EventStorage() as storage:
        for batch in batches:
            trainer.run_step()
            trainer.iter += 1
            by_hand.draws = [draw.tolist() for draw in drawn]
            drawn.clear()
            q, k = batch["query"], batch["key"]
            directions = [(q, k), (k, q)] if symmetric else [(q, k)]
            loss, gradients = by_hand.step(
                directions, batch["index"], lr=0.03, momentum=0.9, weight_decay=1e-4
            )
            assert storage.latest()["total_loss"][0] == pytest.approx(loss.item(), abs=TOLERANCE)
            assert_same({n: p.grad for n, p in model.encoder_q.named_parameters()}, gradients)
            assert_same(dict(model.encoder_q.named_parameters()), by_hand.f_q)
            bn = model.encoder_q.bn
            assert_same({"mean": bn.running_mean, "var": bn.running_var}, by_hand.bn_q)
            by_hand.check(model)
    # What is compared has moved by far more than the tolerance.
    moved = max((by_hand.f_q[name] - start[name]).abs().max() for name in start)
    assert moved > 1e-3


@pytest.fixture
def model(small_network) -> MoCo:
    return MoCo(small_network(DIM), Queue(dim=DIM, size=SIZE), momentum=0.9, temperature=0.2)


def test_pretext_accuracy_is_the_share_of_queries_nearest_to_their_own_key(model):
    batch = {name: torch.randn(BATCH, 3, 6, 6) for name in ("query", "key")}
    with torch.no_grad():
        queries = F.normalize(model.encoder_q(batch["query"]), dim=1)
        keys = F.normalize(model.encoder_k(batch["key"]), dim=1)
        for rival in (-queries[0], queries[0], 0.999 * keys[3]):  # no ties
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


def test_accumulated_batches_reach_the_dictionary_together_and_only_at_the_end(model):
    before = model.dictionary.queue.clone()
    batches = [{name: torch.randn(4, 3, 6, 6) for name in ("query", "key")} for _ in range(2)]
    keys = []
    for batch in batches:
        with torch.no_grad():
            keys.append(F.normalize(model.encoder_k(batch["key"]), dim=1))
        model(batch)["loss_contrastive"].backward()
        assert torch.equal(model.dictionary.queue, before)
    model.finish_step()
    torch.testing.assert_close(model.dictionary.queue[:, :8].T, torch.cat(keys))
    assert model.dictionary.queue_ptr.item() == 8


def test_feature_std_tells_a_collapsed_encoder_from_a_spread_one(small_network):
    model = MoCo(small_network(64), Queue(dim=64, size=SIZE), momentum=0.9, temperature=0.2)
    batch = {name: torch.randn(200, 3, 6, 6) for name in ("query", "key")}
    model.encoder_q.fc = torch.nn.Linear(10, 64)
    torch.nn.init.zeros_(model.encoder_q.fc.weight)
    assert model(batch)["feature_std"] < 1e-3
    model.encoder_q.forward = lambda x: torch.randn(len(x), 64, requires_grad=True)
    assert model(batch)["feature_std"].item() == pytest.approx(1, abs=0.05)


def test_only_keys_of_the_same_batch_can_leak(small_network):
    def model(dictionary):
        return MoCo(small_network(DIM), dictionary, momentum=0.9, temperature=0.2)

    assert model(Queue(dim=DIM, size=SIZE)).may_leak
    assert model(EndToEnd()).may_leak
    assert not model(MemoryBank(dim=DIM, size=SIZE, num_images=IMAGES)).may_leak


def test_similarities_stay_in_float32_under_autocast(model):
    seen = []
    contrast = model.dictionary.contrast

    def note(*args):
        seen.append(contrast(*args))
        return seen[-1]

    model.dictionary.contrast = note
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model({name: torch.randn(BATCH, 3, 6, 6) for name in ("query", "key")})
    logits = seen[0][0]
    assert logits.dtype == torch.float32
    # bf16 has 8 significant bits: rounding to it would change these.
    assert not torch.equal(logits, logits.bfloat16().float())
