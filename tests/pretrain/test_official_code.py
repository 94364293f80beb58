"""Files go from the official code to ours and back: a run continues as if it had not changed."""

import copy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from support.small_network import SmallNetwork
from torch import nn

from moco_d2.pretrain.checkpointing import PretrainCheckpointer
from moco_d2.pretrain.model.dictionary import Queue
from moco_d2.pretrain.model.moco import MoCo

DIM, SIZE, BATCH = 16, 20, 4
MOMENTUM, TEMPERATURE = 0.9, 0.2
SGD = {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-4}
STEPS_PER_EPOCH, EPOCHS = 2, 3


class OfficialMoCo(nn.Module):
    """The official builder for one process, where ShuffleBN changes nothing."""

    def __init__(self):
        super().__init__()
        self.encoder_q = SmallNetwork(DIM, mlp=True)
        self.encoder_k = copy.deepcopy(self.encoder_q)
        for parameter in self.encoder_k.parameters():
            parameter.requires_grad = False
        self.register_buffer("queue", F.normalize(torch.randn(DIM, SIZE), dim=0))
        self.register_buffer("queue_ptr", torch.zeros(1, dtype=torch.long))

    @torch.no_grad()
    def momentum_update_key_encoder(self):
        for q, k in zip(self.encoder_q.parameters(), self.encoder_k.parameters(), strict=True):
            k.data = k.data * MOMENTUM + q.data * (1.0 - MOMENTUM)

    def forward(self, im_q, im_k):
        q = F.normalize(self.encoder_q(im_q), dim=1)
        with torch.no_grad():
            self.momentum_update_key_encoder()
            k = F.normalize(self.encoder_k(im_k), dim=1)
        positive = torch.einsum("nc,nc->n", q, k).unsqueeze(-1)
        negative = torch.einsum("nc,ck->nk", q, self.queue.clone().detach())
        logits = torch.cat([positive, negative], dim=1) / TEMPERATURE
        pointer = int(self.queue_ptr)
        self.queue[:, pointer : pointer + BATCH] = k.T
        self.queue_ptr[0] = (pointer + BATCH) % SIZE
        return logits, torch.zeros(len(logits), dtype=torch.long)


class OfficialRun:
    """main_moco.py, without its data."""

    def __init__(self):
        self.model = nn.DataParallel(OfficialMoCo())  # names as DistributedDataParallel's
        self.optimizer = torch.optim.SGD(self.model.parameters(), **SGD)
        self.start_epoch = 0

    def step(self, views):
        output, target = self.model.module(*views)
        loss = F.cross_entropy(output, target)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.item()

    def save(self, path: Path, epoch: int):
        content = {
            "epoch": epoch + 1,
            "arch": "resnet18",
            "state_dict": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        torch.save(content, path)

    def resume(self, path: Path):
        checkpoint = torch.load(path, map_location="cpu")
        self.start_epoch = checkpoint["epoch"]
        self.model.load_state_dict(checkpoint["state_dict"])
        self.optimizer.load_state_dict(checkpoint["optimizer"])


class OurRun:
    def __init__(self, cfg):
        queue = Queue(dim=DIM, size=SIZE)
        self.model = MoCo(
            SmallNetwork(DIM, mlp=True), queue, momentum=MOMENTUM, temperature=TEMPERATURE
        )
        trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.SGD(trained, **SGD)
        scaler = torch.amp.GradScaler(enabled=False)
        self.checkpointer = PretrainCheckpointer(cfg, self.model, self.optimizer, scaler)

    def step(self, views):
        loss = self.model(dict(zip(("query", "key"), views, strict=True)))["loss_contrastive"]
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.model.finish_step()
        return loss.item()


@pytest.fixture
def views():
    """The two views of each step's batch."""
    generator = torch.Generator().manual_seed(0)
    steps = EPOCHS * STEPS_PER_EPOCH
    return [torch.randn(2, BATCH, 3, 8, 8, generator=generator) for _ in range(steps)]


def test_an_official_run_goes_on_here_as_it_would_have_there(views, make_config, tmp_path):
    official = OfficialRun()
    for batch in views[:STEPS_PER_EPOCH]:
        official.step(batch)
    official.save(tmp_path / "checkpoint_0000.pth.tar", epoch=0)

    ours = OurRun(make_config({"MODEL.WEIGHTS": tmp_path / "checkpoint_0000.pth.tar"}))
    assert ours.checkpointer.resume(iterations_per_epoch=STEPS_PER_EPOCH)[0] == STEPS_PER_EPOCH
    for batch in views[STEPS_PER_EPOCH:]:
        assert ours.step(batch) == pytest.approx(official.step(batch), rel=1e-5)
    theirs = official.model.module
    theirs.momentum_update_key_encoder()  # ours is the state after it
    for branch in ("encoder_q", "encoder_k"):
        for name, tensor in getattr(theirs, branch).state_dict().items():
            torch.testing.assert_close(getattr(ours.model, branch).state_dict()[name], tensor)
    torch.testing.assert_close(ours.model.dictionary.queue, theirs.queue)


def test_the_official_code_resumes_our_file(views, make_config):
    ours = OurRun(make_config())
    for batch in views[:STEPS_PER_EPOCH]:
        ours.step(batch)
    path = ours.checkpointer.save("checkpoint.pth.tar", iteration=STEPS_PER_EPOCH, epoch=1)

    official = OfficialRun()
    official.resume(path)
    assert official.start_epoch == 1
    theirs = official.model.module
    for branch in ("encoder_q", "encoder_k"):
        for name, tensor in getattr(ours.model, branch).state_dict().items():
            assert torch.equal(getattr(theirs, branch).state_dict()[name], tensor), name
    for our, their in zip(
        ours.model.encoder_q.parameters(), theirs.encoder_q.parameters(), strict=True
    ):
        momentum = official.optimizer.state[their]["momentum_buffer"]
        assert torch.equal(momentum, ours.optimizer.state[our]["momentum_buffer"])
    assert len(official.optimizer.state) == len(list(theirs.encoder_q.parameters()))
    # Without a further update of the key encoder, both take the same step.
    theirs.momentum_update_key_encoder = lambda: None
    batch = views[STEPS_PER_EPOCH]
    assert official.step(batch) == pytest.approx(ours.step(batch), rel=1e-5)
    for our, their in zip(
        ours.model.encoder_q.parameters(), theirs.encoder_q.parameters(), strict=True
    ):
        torch.testing.assert_close(our, their)
