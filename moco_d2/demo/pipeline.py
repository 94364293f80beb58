"""The demo: images -> pretraining -> conversion -> fine-tuning -> table, with the tools' own
commands.

Writes into one folder: data/, the outputs of every command, logs/, commands.txt, tables, plots,
report.md and index.html.
"""

import math
import os
import shutil
import statistics
from pathlib import Path
from typing import Any

from tqdm import tqdm

from moco_d2.benchmark import plots, tables
from moco_d2.benchmark.page import page_sections
from moco_d2.benchmark.report import Image, Section, html_code, write_report
from moco_d2.benchmark.results import Record, read_records
from moco_d2.demo import scenes
from moco_d2.demo.jobs import Job, job_runner
from moco_d2.demo.settings import Settings
from moco_d2.files import write_text

INITIALISATIONS = ("random", "supervised", "moco")
PRETEXTS = ("moco", "supervised")
DATA_SEED = 0

# Expected costs relative to each other, seconds on two cores: they only move the progress bar.
_MOCO_STEP, _SUPERVISED_STEP, _CONVERT = 0.36, 0.2, 8.0
_FINETUNE_STEP = {"voc_C4": 0.25, "coco_FPN_1x": 0.25}

# One network, one image size and one budget for all: what a laptop can train in minutes.
_NETWORK = ["MODEL.RESNETS.DEPTH", "18", "MODEL.RESNETS.RES2_OUT_CHANNELS", "64"]
_SMALL_DETECTOR = [
    *_NETWORK,
    *("SOLVER.REFERENCE_WORLD_SIZE", "0"),
    *("SOLVER.IMS_PER_BATCH", "4"),
    *("SOLVER.WARMUP_ITERS", "20"),
    *("INPUT.MIN_SIZE_TRAIN", "(96,)"),
    *("INPUT.MIN_SIZE_TEST", "96"),
    *("MODEL.RPN.PRE_NMS_TOPK_TRAIN", "300", "MODEL.RPN.PRE_NMS_TOPK_TEST", "100"),
    *("MODEL.RPN.POST_NMS_TOPK_TRAIN", "100", "MODEL.RPN.POST_NMS_TOPK_TEST", "20"),
    *("TEST.DETECTIONS_PER_IMAGE", "10"),
    *("TEST.PRECISE_BN.NUM_ITER", "20"),
    *("DATALOADER.NUM_WORKERS", "0"),
    *("SOLVER.CHECKPOINT_PERIOD", "100000"),
]
_SMALL_HEADS = {
    "voc_C4": [
        *("SOLVER.BASE_LR", "0.005"),  # the paper's 0.02 at 16 images, scaled to 4
        *("MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "16"),
        *("MODEL.ANCHOR_GENERATOR.SIZES", "[[24, 40, 64]]"),
        *("MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION", "4"),
    ],
    "coco_FPN_1x": [
        # Heads of its own, random in every run and without norm: in so few steps they need a
        # larger rate than scaling would give. Chosen on scenes of another seed.
        *("SOLVER.BASE_LR", "0.04"),
        *("MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "64"),
        *("MODEL.ANCHOR_GENERATOR.SIZES", "[[8], [16], [32], [48], [64]]"),
        *("MODEL.FPN.OUT_CHANNELS", "64", "MODEL.ROI_BOX_HEAD.FC_DIM", "256"),
        *("MODEL.ROI_MASK_HEAD.CONV_DIM", "64"),
    ],
}


class Demo:
    """The demo in a folder."""

    def __init__(self, root: Path, settings: Settings):
        self.root = root
        self.settings = settings
        self.data = root / "data"
        cores = os.cpu_count() or 1
        self.parallel = min(cores, len(INITIALISATIONS) * len(settings.seeds))
        self.threads = max(1, cores // self.parallel)
        # Otherwise asking for a GPU here would keep the forked commands from using it.
        os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")

    def run(self) -> str:
        """Run everything; returns the table as Markdown.

        Raises:
            UserError: a command failed.
        """
        settings = self.settings
        tqdm.monitor_interval = 0  # no monitor thread: the process is forked
        scenes.write_dataset(
            self.data,
            seed=DATA_SEED,
            pretrain_images=settings.pretrain_images,
            knn_test_images=settings.knn_test_images,
            detection_train=settings.detection_train,
            detection_test=settings.detection_test,
        )
        pretraining = [self._pretrain_job(pretext) for pretext in PRETEXTS]
        for job in pretraining:  # the tool does not begin a run where there is one; the demo does
            shutil.rmtree(job.output, ignore_errors=True)
        conversion = [self._convert_job(pretext) for pretext in PRETEXTS]
        finetuning = [
            self._finetune_job(task, init, seed, steps)
            for task, steps in settings.finetune_steps
            for seed in settings.seeds
            for init in INITIALISATIONS
        ]
        total = sum(job.weight for job in pretraining + conversion + finetuning)
        with job_runner(total, parallel=self.parallel) as runner:
            runner.run(pretraining, "pretraining")
            runner.run(conversion, "converting")
            runner.run(finetuning, "fine-tuning")
        return self.report(runner.commands)

    def _job(self, tool: str, arguments: list[str], name: str, **more: Any) -> Job:
        return Job(
            tool, arguments, self.root / "logs" / f"{name}.log", threads=self.threads, **more
        )

    def _pretrain_job(self, pretext: str) -> Job:
        s = self.settings
        output = self.root / f"pretrain_{pretext}"
        arguments = [
            "--config-file",
            "moco_v2_R50_200ep.yaml",
            *("DATASETS.TRAIN", f"('{self.data / 'pretrain'}',)"),
            *("MOCO.PRETEXT", pretext),
            *("MOCO.ENCODER.ARCH", "resnet18"),
            *("MOCO.AUGMENTATION.SIZE", "32", "MOCO.AUGMENTATION.CROP_SCALE", "(0.4, 1.0)"),
            *("MOCO.AUGMENTATION.BLUR_SIGMA", "(0.1, 0.8)"),
            *("MOCO.EPOCHS", "0", "SOLVER.MAX_ITER", str(s.pretrain_steps)),
            # The paper's 0.03 at batch 256, scaled linearly.
            *("SOLVER.IMS_PER_BATCH", "64", "SOLVER.BASE_LR", "0.0075"),
            *("MOCO.REFERENCE_BATCH", "0"),
            *("SOLVER.AMP.ENABLED", str(bfloat16_pays())),
            *("MOCO.MOMENTUM", str(s.momentum), "MOCO.DICTIONARY.SIZE", str(s.queue)),
            *("MOCO.BN_SPLITS", "4"),
            *("MOCO.KNN.TRAIN", str(self.data / "pretrain")),
            *("MOCO.KNN.TEST", str(self.data / "pretrain_test")),
            *("MOCO.KNN.PERIOD", str(max(1, s.pretrain_steps // 3))),
            *("DATALOADER.NUM_WORKERS", "1"),
            *("SOLVER.CHECKPOINT_PERIOD", "100000"),
            *("SEED", "1"),
            *("OUTPUT_DIR", str(output)),
        ]
        cost = _MOCO_STEP if pretext == "moco" else _SUPERVISED_STEP
        return self._job(
            "pretrain.py",
            arguments,
            f"pretrain_{pretext}",
            output=output,
            steps=s.pretrain_steps,
            weight=cost * s.pretrain_steps,
        )

    def _convert_job(self, pretext: str) -> Job:
        source = self.root / f"pretrain_{pretext}" / "checkpoint_final.pth.tar"
        return self._job(
            "convert.py",
            [str(source), str(self._weights(pretext))],
            f"convert_{pretext}",
            weight=_CONVERT,
        )

    def _weights(self, initialisation: str) -> Path:
        return self.root / "weights" / f"{initialisation}.pth"

    def _finetune_folder(self, task: str, initialisation: str, seed: int) -> Path:
        return self.root / "runs" / f"{task}_{initialisation}_seed{seed}"

    def _finetune_job(self, task: str, initialisation: str, seed: int, steps: int) -> Job:
        output = self._finetune_folder(task, initialisation, seed)
        if task.startswith("voc"):
            train, test = (f"voc:{self.data / 'VOC2007'}:{s}" for s in ("trainval", "test"))
            classes = len(scenes.CLASSES)
        else:
            coco = self.data / "coco"
            train, test = (
                f"coco:{coco / 'annotations' / f'{s}.json'}:{coco / 'images' / s}"
                for s in ("train", "test")
            )
            classes = len(scenes.COCO_CLASSES)
        arguments = [
            *("--config-file", f"{task}_{initialisation}.yaml"),
            *("DATASETS.TRAIN", f"('{train}',)", "DATASETS.TEST", f"('{test}',)"),
            *("MODEL.ROI_HEADS.NUM_CLASSES", str(classes)),
            *_SMALL_DETECTOR,
            *_SMALL_HEADS[task],
            *("SOLVER.AMP.ENABLED", str(bfloat16_pays())),
            *("SOLVER.MAX_ITER", str(steps), "SOLVER.STEPS", f"({steps * 3 // 4},)"),
            *("SEED", str(seed), "OUTPUT_DIR", str(output)),
        ]
        if initialisation != "random":
            arguments += ["MODEL.WEIGHTS", str(self._weights(initialisation))]
        return self._job(
            "train_net.py",
            arguments,
            output.name,
            output=output,
            steps=steps,
            weight=_FINETUNE_STEP[task] * steps,
        )

    def report(self, commands: list[str]) -> str:
        """Write the tables, the plots, index.html and report.md; returns the Markdown table.

        Args:
            commands: the command lines that were run.
        """
        root, settings = self.root, self.settings
        write_text(root / "commands.txt", "\n".join(commands) + "\n")
        records = read_records([root / "runs"])
        for name, kind in (("md", "markdown"), ("csv", "csv"), ("tex", "latex")):
            write_text(root / f"table.{name}", tables.render(records, kind))
        pretext = {
            name: plots.read_metrics(root / f"pretrain_{name}" / "metrics.json")
            for name in PRETEXTS
        }
        plots.training_curves(
            pretext["moco"], root / "pretext_loss.svg", dictionary_size=settings.queue
        )
        chance = 1 / len(scenes.CLASSES)
        plots.knn_curve(pretext, root / "knn.svg", chance=chance)
        summary = f"{loss_summary(pretext['moco'], settings.queue)} {knn_summary(pretext, chance)}"
        curves = [
            Image(root / "pretext_loss.svg", "MoCo's loss against chance, ln(K+1)"),
            Image(root / "knn.svg", "kNN accuracy on held-out images"),
        ]
        results, *others = page_sections(records, root)
        write_report(
            root / "index.html",
            title="moco_d2: does MoCo transfer? The whole line on generated images",
            sections=[
                results,
                Section("Pretraining", text=summary, images=curves),
                *others,
                Section("The whole line", html=html_code(("", command) for command in commands)),
            ],
        )
        images = [image for section in others for image in section.images]
        table = f"{tables.render(records, 'markdown')}\n{summary}\n"
        pictures = "\n\n".join(f"![{i.caption}]({Path(i.path).name})" for i in curves + images)
        write_text(root / "report.md", f"{table}\n{self._what_ran(records)}\n\n{pictures}\n")
        return table

    def _what_ran(self, records: list[Record]) -> str:
        """A paragraph: sizes, machine and cost, from the settings and the records."""
        s, run = self.settings, records[0]
        sizes = ", ".join(f"{task} {steps} steps" for task, steps in s.finetune_steps)
        return (
            f"{s.pretrain_images} images for pretraining, {s.pretrain_steps} steps of batch 64; "
            f"{s.detection_train} scenes to fine-tune on and {s.detection_test} to test on in each "
            f"set, batch 4 ({sizes}); seeds {', '.join(map(str, s.seeds))}; ResNet-18. On "
            f"{run.hardware['name']}, {run.hardware['cpu_count']} cores, device "
            f"{run.hardware['device']}, torch {run.environment['torch']}."
        )


def bfloat16_pays() -> bool:
    """Whether this machine multiplies bfloat16 in hardware; elsewhere fp32 is faster on a CPU."""
    import torch

    has_instruction = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    return torch.cuda.is_available() or has_instruction()


def loss_summary(pretext: list[dict[str, Any]], queue: int) -> str:
    """One sentence: where MoCo's loss ended, beside chance, and whether it was still falling."""
    losses = [line["loss_contrastive"] for line in pretext if "loss_contrastive" in line]
    quarter = losses[-max(2, len(losses) // 4) :]
    half = len(quarter) // 2
    fall = statistics.fmean(quarter[:half]) - statistics.fmean(quarter[half:])
    return (
        f"MoCo's loss ended at {losses[-1]:.2f}, chance ln(K+1) is {math.log(queue + 1):.2f}; "
        f"from the first to the second half of its last quarter it fell by {fall:.3f}."
    )


def knn_summary(pretext: dict[str, list[dict[str, Any]]], chance: float) -> str:
    """One sentence: kNN accuracy of the random, the supervised and the MoCo network."""
    curves = {
        name: [line["knn_accuracy"] for line in lines if "knn_accuracy" in line]
        for name, lines in pretext.items()
    }
    return (
        f"kNN accuracy on held-out images: random {curves['moco'][0]:.3f}, "
        f"MoCo {curves['moco'][-1]:.3f}, supervised {curves['supervised'][-1]:.3f} "
        f"(chance {chance:.3f})."
    )
