"""A ViT's checkpoint, converted and fine-tuned by the commands that the converter prints."""

import json

import torch
from support.checkpoint.vits import HEADS, WIDTH, under, vit
from support.commands import run_tool
from support.paths import TOOLS
from support.toy_data import SMALL_DETECTOR, make_coco

import moco_d2  # noqa: F401  before detectron2
from moco_d2.checkpoint.io import load_checkpoint

STEPS = 2
RATE = 1e-4
SIDE = 64  # of images in pixels
SMALL = {
    "MOCO.VIT.GLOBAL_BLOCKS": 1,
    "MOCO.VIT.WINDOW_SIZE": 3,
    "MOCO.VIT.IMAGE_SIZE": SIDE,
    "INPUT.CROP.SIZE": f"[{SIDE},{SIDE}]",
    "INPUT.MAX_SIZE_TEST": SIDE,
    "MODEL.FPN.OUT_CHANNELS": 8,
    "MODEL.ROI_BOX_HEAD.CONV_DIM": 8,
    "MODEL.ROI_BOX_HEAD.FC_DIM": 16,
    "MODEL.ROI_MASK_HEAD.CONV_DIM": 8,
    "SOLVER.STEPS": "()",
    "SOLVER.MAX_ITER": STEPS,
    "SOLVER.BASE_LR": RATE,
    "SOLVER.WEIGHT_DECAY": 0.0,
    "TEST.EVAL_PERIOD": 0,
}


def test_a_converted_vit_is_fine_tuned_whole(tmp_path):
    """DINO's file, with LayerScale, and positions of 14 x 14 patches for images of 4 x 4."""
    state = vit(scaled=True)
    content = {
        "student": under("module.backbone.", state),
        "teacher": under("backbone.", vit(scaled=True, seed=1)),
    }
    torch.save(content, tmp_path / "checkpoint.pth")
    weights, config = tmp_path / "vit.pth", tmp_path / "vit.yaml"
    converted = run_tool(
        *(TOOLS / "convert.py", tmp_path / "checkpoint.pth", weights),
        *("--heads", HEADS, "--emit-config", config),
    )
    assert converted.returncode == 0, converted.stderr
    assert f"tools/train_net.py --config {config} --task coco_vitdet_" in converted.stdout

    root = make_coco(tmp_path / "coco")
    words = dict(zip(SMALL_DETECTOR[::2], SMALL_DETECTOR[1::2], strict=True)) | SMALL
    for key, split in (("TRAIN", "train"), ("TEST", "test")):
        words[f"DATASETS.{key}"] = f"('coco:{root}/{split}.json:{root}/images',)"
    trained = run_tool(
        *(TOOLS / "train_net.py", "--config", config, "--task", "coco_vitdet_Ti_25ep"),
        *("OUTPUT_DIR", tmp_path / "out", "MODEL.DEVICE", "cpu"),
        *(word for pair in words.items() for word in pair),
    )
    assert trained.returncode == 0, trained.stderr[-3000:]

    record = json.loads((tmp_path / "out" / "record.json").read_text())
    whole = 2 * 12 + 3  # two blocks; patches and positions
    assert record["coverage"] == {"expected": whole, "loaded": whole}
    assert record["run"]["task"] == "coco_vitdet_Ti_25ep"
    assert record["config"]["resolved"]["MOCO"]["VIT"]["EMBED_DIM"] == WIDTH
    source = record["weights"]["provenance"]
    assert (source["family"], source["tensors_found"]) == ("dino_vit", whole + 2 * 2)

    # Training began with these weights, and changed each by at most a step of AdamW.
    begun = load_checkpoint(weights)["model"]
    final = load_checkpoint(tmp_path / "out" / "model_final.pth")["model"]
    assert len(begun) == whole
    for name, tensor in begun.items():
        change = (final[name] - tensor).abs().max()
        assert 0 < change <= 1.01 * STEPS * RATE, name
