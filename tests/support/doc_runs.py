"""How a test executes each documented command in tiny, or what the command needs that is not here.

Both lists have patterns of the command lines that doc_commands.py finds; the first pattern that
fits counts. tests/test_docs_runs.py refuses a command without one, and a pattern without a command.
"""

from support.toy_data import SMALL_DETECTOR

_DATA = "DATASETS.TRAIN voc:datasets/VOC2007:trainval DATASETS.TEST voc:datasets/VOC2007:test"
_PRETRAIN = (
    "MOCO.ENCODER.ARCH resnet18 MOCO.AUGMENTATION.SIZE 32 MOCO.DICTIONARY.SIZE 16 MOCO.EPOCHS 0 "
    "MOCO.REFERENCE_BATCH 0 SOLVER.IMS_PER_BATCH 8 SOLVER.MAX_ITER 2 DATALOADER.NUM_WORKERS 0 "
    "MODEL.DEVICE cpu MOCO.BN_SPLITS 4 MOCO.ENCODER.WIDTH_FACTOR 0.25"
)
_V3 = (
    f"{_PRETRAIN} MOCO.ENCODER.ARCH vit_tiny MOCO.ENCODER.MLP_DIM 16 "
    "MOCO.WARMUP_EPOCHS 0 MOCO.ACCUMULATION 2 MOCO.BN_SPLITS 1"
)
_QUARTER = (
    "MODEL.BACKBONE.NAME build_basic_resnet MODEL.RESNETS.WIDTH_PER_GROUP 16 "
    "MODEL.RESNETS.STEM_OUT_CHANNELS 16 MODEL.RESNETS.RES2_OUT_CHANNELS 16"
)
_TRAIN = f"{' '.join(SMALL_DETECTOR)} {_QUARTER} {_DATA} MODEL.DEVICE cpu"
_FROM_MOCO = f"{_TRAIN} MODEL.WEIGHTS weights/moco.pth"
_PROBE = "--size 32 --workers 0 --device cpu --batch-size 8 --num-gpus 1"
_EPOCH = f"{_PROBE} --epochs 1"

# Pattern -> words that are added, in the order in which the commands need each other. Besides,
# 8 GPUs become one process on the CPU, and of commands that differ in seed or folder one is run.
RUNS = {
    "tools/doctor.py": "",
    "tools/demo.py * --images *": "",
    "tools/shards.py *": "--workers 0",
    "tools/pretrain.py * --num-gpus 8 DATASETS.TRAIN datasets/imagenet/train *": _PRETRAIN,
    "tools/pretrain.py * OUTPUT_DIR output/proof/before *": "SOLVER.MAX_ITER 2 "
    "MOCO.ENCODER.WIDTH_FACTOR 0.25",
    "tools/pretrain.py * OUTPUT_DIR output/small *": _PRETRAIN,
    "tools/pretrain.py * OUTPUT_DIR output/moco_v3 *": _V3,
    "tools/pretrain.py * OUTPUT_DIR output/moco_v3_tiny *": _V3,
    "tools/pretrain.py * --num-gpus 8": _PRETRAIN,
    "tools/pretrain.py * DATASETS.TRAIN my/images MOCO.TEMPERATURE 0.1": _PRETRAIN,
    "tools/convert.py output/m*": "",
    "tools/convert.py r-50-1000ep.pth.tar *": "",
    "tools/linear_eval.py checkpoint.pth.tar * --protocol knn": _PROBE,
    "tools/linear_eval.py checkpoint.pth.tar *": _EPOCH,
    "tools/linear_eval.py random --arch resnet50 *": f"{_EPOCH} --arch resnet18",
    "tools/train_net.py --config voc_C4_random.yaml *": _TRAIN,
    "tools/train_net.py --config voc_C4_moco.yaml --num-gpus *": _FROM_MOCO,
    "tools/train_net.py --config voc_C4_moco.yaml OUTPUT_DIR output/on_one": _FROM_MOCO,
    "tools/train_net.py * MOCO.ACCUMULATION 2": _FROM_MOCO,
    "tools/train_net.py --config voc_C4_moco.yaml MODEL.WEIGHTS weights/*": _TRAIN,
    "tools/train_net.py --config weights/mine.yaml --task *": _TRAIN,
    "tools/train_net.py * --eval-only *": _TRAIN,
    "tools/train_net.py * --predict *": _TRAIN,
    "tools/train_net.py * --export *": _TRAIN,
    "tools/convert.py output/run/model_final.pth *": "",
    "tools/benchmark.py plan *": "",
    "tools/benchmark.py paper *": "",
    "tools/benchmark.py import *": "",
    "tools/benchmark.py compare *": "",
    "tools/benchmark.py verify *": "",
    "tools/benchmark.py export *": "",
    "tools/benchmark.py board *": "",
    "tools/benchmark.py table *": "",
    "tools/benchmark.py report *": "",
    "tools/transfer.py mine.pth *": "--plan-only --supervised none --gpus-per-run 0",
    "campaigns/faults.py --list": "",
}

_SUITE = "the GPUs of a whole suite; tests/benchmark/test_runner.py runs small ones"
_PUBLISHED = (
    "the network, for published weights; tests/checkpoint/test_weights_by_name.py serves its own"
)
_MINUTES = "minutes; tests/campaigns/ makes trials of each kind"

# Pattern -> what the command needs, and which test runs the like.
NEEDS = {
    "make *": "an environment of its own, which .ci/run makes",
    "uv venv": "an environment of its own; .ci/install_paths runs the like",
    "uv pip install *": "packages; .ci/install_paths runs it in fresh environments",
    ".venv/bin/pre-commit install": "the repository of git, which it changes",
    "python detectron2/tools/train_net.py *": "a checkout of Detectron2; "
    "tests/end_to_end/test_stock_detectron2.py runs a config in stock Detectron2",
    "grep -o *": "the output of the command before it, of which it prints a part",
    "torchrun *": "several GPUs; tests/end_to_end/test_line.py starts two processes",
    "* --num-machines 4 *": "several machines; tests/engine/test_launch.py",
    "* --submit *": "a cluster; tests/engine/test_launch.py and tests/benchmark/test_cluster.py",
    "* MOCO.TRACKERS wandb": "the network; tests/engine/test_trackers.py",
    "* MOCO.DICTIONARY.NAME HarderHalf *": "the edits of its page; tests/test_how_to.py",
    "*pets*": "the edits of its page; tests/test_how_to.py",
    "*moco://v2_800ep*": _PUBLISHED,
    "* hf://*": "the network; tests/checkpoint/test_hub.py has a hub of its own",
    "* voc_C4_supervised.yaml *": _PUBLISHED,
    "* output/mine MOCO.ENCODER.ARCH resnet18 *": "test_the_quick_start_runs, which runs it",
    "tools/benchmark.py run output/quick*": "test_the_quick_start_runs, which runs it",
    "tools/demo.py --out output/demo": "minutes; tests/demo/",
    "tools/transfer.py vit.pth*": "minutes; tests/benchmark/test_transfer_command.py",
    "tools/transfer.py mine.pth theirs*": "minutes; tests/benchmark/test_transfer_command.py",
    "tools/benchmark.py * output/transfer*": "runs; tests/benchmark/test_transfer_command.py",
    "tools/benchmark.py run pretext_smoke*": "minutes; tests/benchmark/test_pretext.py",
    "tools/benchmark.py run smoke*": "a quarter of an hour; tests/benchmark/test_runner.py",
    "tools/benchmark.py run *": _SUITE,
    "campaigns/faults.py --[!l]*": _MINUTES,
    "campaigns/fuzz_*": _MINUTES,
    "studies/learning.py*": "hours; tests/pretrain/test_pretrainer.py trains",
    "benchmarks/*": "a machine without other work; tests/test_benchmarks.py",
}
