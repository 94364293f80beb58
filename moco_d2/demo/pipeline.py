"""The demo: images -> pretraining -> conversion -> fine-tuning -> table, with the commands of
tools/.

It is a suite of runs (cells.py) in one folder, which also holds commands.txt, tables, plots,
report.md and index.html.
"""

import shlex
import statistics
from pathlib import Path
from typing import Any

from moco_d2.benchmark import rendering
from moco_d2.benchmark.html import Image, Section, html_code, write_report
from moco_d2.benchmark.records.run_records import Record, read_records
from moco_d2.benchmark.report import plots
from moco_d2.benchmark.report.page import page_sections
from moco_d2.benchmark.runs import retention
from moco_d2.benchmark.runs.cell_state import placed
from moco_d2.benchmark.runs.runner import run
from moco_d2.benchmark.runs.suites import Suite
from moco_d2.demo import scenes
from moco_d2.demo.cells import demo_cells, demo_files, pretrainings
from moco_d2.demo.networks import NETWORKS
from moco_d2.demo.settings import Settings
from moco_d2.errors import UserError
from moco_d2.files import write_text

#: What the labels of pretraining have to do with the classes to detect.
LABELS = (
    "The supervised network was pretrained on the shapes of the objects, and the detectors have "
    "to find their textures: labels and classes are of two kinds, as in ImageNet and a detection "
    "set."
)
_SAME_CLASSES = (
    " Only supervised_same_classes was pretrained on the textures, so it knows the classes before."
)
_REPORT = "report.md"
_CHANCE = 1 / len(scenes.LOOK_NAMES)  # kNN accuracy of guessing


class Demo:
    """The demo in one folder."""

    def __init__(self, root: Path, settings: Settings):
        self.root = root.absolute()
        self.settings = settings
        self.network = NETWORKS[settings.network]

    def run(self) -> str:
        """Run all unfinished steps, and return the table as Markdown.

        Checkpoints are removed when the report has its pictures of what the detectors find.

        Raises:
            UserError: If a run failed.
        """
        cells = tuple(demo_cells(self.settings))
        suite = Suite(
            "demo", "All steps on generated images", cells, files=demo_files(self.settings)
        )
        if run(suite, folder=self.root):
            raise UserError(
                "a run of the demo failed: see its error above; the same command continues the demo"
            )
        if (self.root / _REPORT).is_file() and not any(self.root.rglob("model_final.pth")):
            return self._table(self._records())[0]  # a report without models has fewer pictures
        table = self.report(
            [
                f"tools/{tool} {shlex.join(placed(word, cell, self.root) for word in words)}"
                for cell in cells
                for tool, words in cell.commands
            ]
        )
        for cell in cells:
            retention.tidy(cell, self.root, "results")
        return table

    def report(self, commands: list[str]) -> str:
        """Write tables, plots, index.html and report.md, and return the Markdown table.

        Args:
            commands: The command lines that were run.
        """
        root, settings = self.root, self.settings
        write_text(root / "commands.txt", "\n".join(commands) + "\n")
        records = self._records()
        for name, kind in (("md", "markdown"), ("csv", "csv"), ("tex", "latex")):
            write_text(root / f"table.{name}", rendering.render(records, kind))
        table, pretext, summary = self._table(records)
        pretrained, *_ = pretext.values()
        method, queue = self.network.method, settings.queue if self.network.has_queue else None
        plots.training_curves(pretrained, root / "pretext_loss.svg", dictionary_size=queue)
        plots.knn_curve(pretext, root / "knn.svg", chance=_CHANCE)
        against = "" if queue is None else " against chance, ln(K+1)"
        curves = [
            Image(root / "pretext_loss.svg", f"{method}'s loss{against}"),
            Image(root / "knn.svg", "kNN accuracy of texture and shape, on held-out images"),
        ]
        results, *others = page_sections(records, root)
        write_report(
            root / "index.html",
            title=f"moco_d2: does {method} transfer? All steps on generated images",
            sections=[
                results,
                Section("Pretraining", text=summary, images=curves),
                *others,
                Section("Commands", html=html_code(("", command) for command in commands)),
            ],
        )
        images = [image for section in others for image in section.images]
        pictures = "\n\n".join(f"![{i.caption}]({Path(i.path).name})" for i in curves + images)
        write_text(root / _REPORT, f"{table}\n{self._description(records)}\n\n{pictures}\n")
        return table

    def _records(self) -> list[Record]:
        return read_records([self.root / task for task, _ in self.settings.finetune_steps])

    def _table(self, records: list[Record]) -> tuple[str, dict[str, list[dict[str, Any]]], str]:
        """Return the Markdown table, the metrics of each pretraining, and sentences about them."""
        settings = self.settings
        metrics = {
            name: plots.read_metrics(self.root / f"pretrain_{name}" / "metrics.json")
            for name in pretrainings(settings)
        }
        labels = LABELS + (_SAME_CLASSES if settings.same_classes else "")
        method, (pretrained, supervised, *_) = self.network.method, metrics.values()
        summary = (
            f"{labels} {loss_summary(method, pretrained, *self.network.chance(settings.queue))} "
            f"{knn_summary(method, pretrained, supervised, _CHANCE)}"
        )
        return f"{rendering.render(records, 'markdown')}\n{summary}\n", metrics, summary

    def _description(self, records: list[Record]) -> str:
        """Return a paragraph with the sizes and the machine."""
        s, run = self.settings, records[0]
        sizes = ", ".join(f"{task} {steps} steps" for task, steps in s.finetune_steps)
        return (
            f"{s.pretrain_images} images for pretraining, {s.pretrain_steps} steps of batch 64; "
            f"{s.detection_train} scenes to fine-tune on and {s.detection_test} to test on in each "
            f"set, batch 4 ({sizes}); seeds {', '.join(map(str, s.seeds))}; "
            f"{self.network.title}. On {run.hardware['name']}, {run.hardware['cpu_count']} cores, "
            f"device {run.hardware['device']}, torch {run.environment['torch']}."
        )


def loss_summary(method: str, lines: list[dict[str, Any]], formula: str, chance: float) -> str:
    """Return a sentence with the final loss, the loss of chance, and the fall at the end.

    Args:
        method: Name of the pretraining.
        lines: Its metrics.
        formula, chance: See networks.Network.chance.
    """
    losses = [line["loss_contrastive"] for line in lines if "loss_contrastive" in line]
    quarter = losses[-max(2, len(losses) // 4) :]
    half = len(quarter) // 2
    fall = statistics.fmean(quarter[:half]) - statistics.fmean(quarter[half:])
    return (
        f"{method}'s loss ended at {losses[-1]:.2f}, chance {formula} is {chance:.2f}; "
        f"from the first to the second half of its last quarter it fell by {fall:.3f}."
    )


def knn_summary(
    method: str,
    pretrained: list[dict[str, Any]],
    supervised: list[dict[str, Any]],
    chance: float,
) -> str:
    """Return a sentence with the kNN accuracies of random, pretrained and supervised network."""
    first, last, label = (
        [line["knn_accuracy"] for line in lines if "knn_accuracy" in line][index]
        for lines, index in ((pretrained, 0), (pretrained, -1), (supervised, -1))
    )
    return (
        f"kNN accuracy of texture and shape on held-out images: random {first:.3f}, "
        f"{method} {last:.3f}, supervised {label:.3f} (chance {chance:.3f})."
    )
