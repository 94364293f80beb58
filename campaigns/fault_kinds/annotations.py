"""Damaged and odd annotations, with which fine-tuning goes on as documented or is refused."""

import copy
import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image
from support.toy_data import CLASSES, SIDE, make_coco, make_voc

from fault_kinds.case import Kind, Outcome, check
from fault_kinds.jobs import Job, no_traceback
from fault_kinds.machine import one_sentence
from fault_kinds.workloads import FineTuning

GOES_ON, REFUSES, EITHER = "goes on", "refused", "either"

Content = dict[str, Any]
_IMAGES = 2  # images of a split, and of a step


def _first(content: Content) -> Content:
    return content["annotations"][0]


def _set(**changes: Any) -> Callable[[Content], None]:
    return lambda content: _first(content).update(changes)


def _drop(key: str) -> Callable[[Content], None]:
    return lambda content: _first(content).pop(key)


def _image(**changes: Any) -> Callable[[Content], None]:
    return lambda content: content["images"][0].update(changes)


def _again(content: Content) -> None:
    content["annotations"].append(copy.deepcopy(_first(content)))


def _image_again(content: Content) -> None:
    content["images"].append(copy.deepcopy(content["images"][0]))


def _crowd(content: Content) -> None:
    rle = {"size": [SIDE, SIDE], "counts": [SIDE * SIDE // 2, SIDE * SIDE - SIDE * SIDE // 2]}
    _first(content).update(iscrowd=1, segmentation=rle)


def _all_crowd(content: Content) -> None:
    for annotation in content["annotations"]:
        annotation["iscrowd"] = 1


def _no_annotations(content: Content) -> None:
    content["annotations"] = []


def _rle(size: list[int], counts: Any) -> Callable[[Content], None]:
    return _set(segmentation={"size": size, "counts": counts})


def _polygon(*corners: float) -> Callable[[Content], None]:
    return _set(segmentation=[list(corners)])


def _every(change: Callable[[Content], None]) -> Callable[[Content], None]:
    """Return a change of all annotations, one by one."""

    def of_all(content: Content) -> None:
        for annotation in content["annotations"]:
            change(annotation)

    return of_all


def _corners(annotation: Content) -> None:
    annotation["bbox"] = [40, 40, 62, 62]


def _relative(annotation: Content) -> None:
    annotation["bbox"] = [value / SIDE for value in annotation["bbox"]]


def _run_lengths(annotation: Content) -> None:
    half = SIDE * SIDE // 2
    annotation["segmentation"] = {"size": [SIDE, SIDE], "counts": [half, half]}


def _bare(annotation: Content) -> None:
    for key in ("area", "iscrowd"):
        annotation.pop(key)


def _beside(annotation: Content) -> None:
    annotation["bbox"] = [200, 200, 9, 9]


def _twice(content: Content) -> None:
    again = copy.deepcopy(content["annotations"])
    for number, annotation in enumerate(again):
        annotation["id"] = 1000 + number
    content["annotations"] += again


def _ids_of_images(value: Any) -> Callable[[Content], None]:
    def change(content: Content) -> None:
        content["images"][0]["id"] = _first(content)["image_id"] = value

    return change


def _other_image(content: Content) -> None:
    content["images"][1]["id"] = content["images"][0]["id"]


#: Name -> a change of a COCO file that other tools take for a wrong number without a word, and its
#: expected outcome in the training set and in the test set.
COCO_IDS: dict[str, tuple[Callable[[Content], None], str]] = {
    "annotation id 0": (_set(id=0), GOES_ON),
    "annotation id with a fraction": (_set(id=1.5), GOES_ON),
    "negative annotation id": (_set(id=-2), GOES_ON),
    "annotation id of text": (_set(id="x"), GOES_ON),
    "neither area nor iscrowd": (_every(_bare), GOES_ON),
    "area of NaN": (_set(area=math.nan), REFUSES),
    "area of 1e300": (_set(area=1e300), REFUSES),
    "negative area": (_set(area=-1), REFUSES),
    "iscrowd null": (_set(iscrowd=None), REFUSES),
    "iscrowd of text": (_set(iscrowd="0"), REFUSES),
    "image id true": (_ids_of_images(True), REFUSES),
    "image id of text": (_ids_of_images("1"), REFUSES),
    "image id with a fraction": (_ids_of_images(1.5), REFUSES),
    "negative image id": (_ids_of_images(-1), REFUSES),
    "image id that floats cannot hold": (_ids_of_images(2**53 + 1), REFUSES),
    "one image id for two images": (_other_image, REFUSES),
    "boxes by their corners": (_every(_corners), REFUSES),
    "boxes relative to the image": (_every(_relative), REFUSES),
    "masks as run lengths": (_every(_run_lengths), GOES_ON),
    "every object twice": (_twice, REFUSES),
    "every box beside its image": (_every(_beside), REFUSES),
    "sizes that are whole floats": (_image(width=float(SIDE), height=float(SIDE)), GOES_ON),
    "iscrowd 0.0": (_set(iscrowd=0.0), GOES_ON),
    "an empty name": (lambda c: c["categories"][0].update(name=""), REFUSES),
    "image ids of another file": (
        _every(lambda a: a.update(image_id=a["image_id"] + 5000)),
        REFUSES,
    ),
    "size 0": (_image(width=0, height=0), REFUSES),
    "size -1": (_image(width=-1, height=-1), REFUSES),
}


#: Name -> a change of a COCO file, and its expected outcome. Standard tools go on with GOES_ON.
COCO: dict[str, tuple[Callable[[Content], None], str]] = {
    "box beside the image": (_set(bbox=[200, 200, 20, 20]), EITHER),
    "box partly outside": (_set(bbox=[-10, -10, 40, 40]), GOES_ON),
    "box of zero width": (_set(bbox=[10, 10, 0, 20]), REFUSES),
    "box of zero area": (_set(bbox=[10, 10, 0, 0]), REFUSES),
    "box turned around": (_set(bbox=[30, 30, -20, -20]), REFUSES),
    "NaN in a box": (_set(bbox=[math.nan, 10, 20, 20]), REFUSES),
    "infinite box": (_set(bbox=[0, 0, math.inf, 20]), REFUSES),
    "box of three numbers": (_set(bbox=[1, 2, 3]), REFUSES),
    "box of words": (_set(bbox=["1", "2", "30", "40"]), REFUSES),
    "box null": (_set(bbox=None), REFUSES),
    "no box": (_drop("bbox"), REFUSES),
    "crowd": (_crowd, GOES_ON),
    "everything a crowd": (_all_crowd, REFUSES),
    "unknown category": (_set(category_id=99), REFUSES),
    "no category": (_drop("category_id"), REFUSES),
    "annotation of no image": (_set(image_id=999), EITHER),
    "no image_id": (_drop("image_id"), REFUSES),
    "the same annotation id twice": (_again, REFUSES),
    "the same image id twice": (_image_again, REFUSES),
    "missing image": (_image(file_name="nowhere.jpg"), REFUSES),
    "image name leaves the folder": (_image(file_name="../../../etc/passwd"), REFUSES),
    "image without a name": (lambda c: c["images"][0].pop("file_name"), REFUSES),
    "other size than the image": (_image(width=640, height=480), REFUSES),
    "size null": (_image(width=None), REFUSES),
    "no annotations": (_no_annotations, REFUSES),
    "no images": (lambda c: c.update(images=[]), REFUSES),
    "categories of one name": (
        lambda c: c.update(categories=[{"id": i, "name": "x"} for i in (1, 2)]),
        REFUSES,
    ),
    "category without a name": (lambda c: c["categories"][0].pop("name"), REFUSES),
    "ids of a million": (_set(id=10**6), GOES_ON),
    "a mask of 3.6 GB": (_rle([60_000, 60_000], "2"), REFUSES),
    "a mask whose runs break off": (_rle([SIDE, SIDE], "P"), REFUSES),
    "a mask whose runs go past its end": (_rle([SIDE, SIDE], [SIDE * SIDE, 5]), REFUSES),
    "a mask whose runs overflow": (_rle([SIDE, SIDE], [0, 2**32 - 1] * 100_000), REFUSES),
    "a polygon to 1e30": (_polygon(1, 1, 1e30, 1, 9, 9), REFUSES),
    "a short polygon to 1e30": (_polygon(1e30, 1, 1), REFUSES),
    "NaN in a polygon": (_polygon(1, 1, math.nan, 1, 9, 9), REFUSES),
    "a polygon of 4 gigapixels": (_polygon(*[0, 0, 500, 500] * 10_000), REFUSES),
    "an image of a billion pixels a side": (_image(width=10**9, height=10**9), REFUSES),
}  # fmt: skip

_JSON_TEXTS: dict[str, str] = {
    "empty file": "",
    "a list": "[]",
    "cut short": '{"images": [{"id": 0, "file_na',
    "not UTF-8": "\udcff\udcfe{}",
    "nested 100,000 deep": "[" * 100_000,
    "a number of a million digits": '{"images": ' + "9" * 1_000_000 + "}",
}


def _settings(train: str, test: str) -> dict[str, Any]:
    return {
        "DATASETS.TRAIN": f"('{train}',)",
        "DATASETS.TEST": f"('{test}',)",
        "SOLVER.MAX_ITER": 1,
        "SOLVER.STEPS": "()",
        "SOLVER.CHECKPOINT_PERIOD": 0,
        "TEST.EVAL_PERIOD": 0,
    }


def _fine_tune(settings: dict[str, Any], folder: Path, expected: str, where: str) -> str:
    workload = FineTuning("annotations", **settings)
    job = Job(**workload.start_words(folder / "out"), before=workload.before)
    if job.wait() == 0:
        check(expected != REFUSES, "goes on, but should be refused")
        no_traceback(job.output())
        return GOES_ON
    sentence = one_sentence(job)
    check(expected != GOES_ON, f"refused, but should go on: {sentence}")
    check(where in sentence, f"{where} is not named: {sentence}")
    return f"{REFUSED_AS} {sentence[:120]}"


REFUSED_AS = "refused:"


def coco(rng: random.Random, folder: Path, i: int) -> Outcome:
    """Fine-tune with one change of a COCO file."""
    name = [*COCO, *_JSON_TEXTS][i % (len(COCO) + len(_JSON_TEXTS))]
    root = make_coco(folder / "coco", images=_IMAGES)
    file = root / "train.json"
    if name in COCO:
        change, expected = COCO[name]
        content = json.loads(file.read_text())
        change(content)
        file.write_text(json.dumps(content))
    else:
        expected = REFUSES
        file.write_bytes(_JSON_TEXTS[name].encode("utf-8", "surrogateescape"))
    sets = (f"coco:{root}/{split}.json:{root}/images" for split in ("train", "test"))
    outcome = _fine_tune(_settings(*sets), folder, expected, "train")
    return Outcome(f"COCO, {name}: {outcome}", 1, {outcome.split(":")[0]: 1})


def coco_ids(rng: random.Random, folder: Path, i: int) -> Outcome:
    """Fine-tune with one change of ids or numbers in the COCO file of one of the two sets."""
    cases = [(name, split) for split in ("train", "test") for name in COCO_IDS]
    name, split = cases[i % len(cases)]
    change, expected = COCO_IDS[name]
    root = make_coco(folder / "coco", images=_IMAGES)
    file = root / f"{split}.json"
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))
    sets = (f"coco:{root}/{split}.json:{root}/images" for split in ("train", "test"))
    outcome = _fine_tune(_settings(*sets), folder, expected, split)
    return Outcome(f"COCO {split}, {name}: {outcome}", 1, {outcome.split(":")[0]: 1})


_IMAGES_OF_SETS: dict[str, Callable[[bytes], bytes]] = {
    "cut after 100 bytes": lambda data: data[:100],
    "empty": lambda data: b"",
    "text": lambda data: b"a picture of a dog",
}


def set_image(rng: random.Random, folder: Path, i: int) -> Outcome:
    """Fine-tune with one damaged image in the training set or in the test set."""
    cases = [(name, split) for split in ("train", "test") for name in (*_IMAGES_OF_SETS, "larger")]
    name, split = cases[i % len(cases)]
    root = make_coco(folder / "coco", images=_IMAGES)
    file = root / "images" / f"{split}0.jpg"
    if name == "larger":
        Image.new("RGB", (SIDE + 7, SIDE)).save(file)
    else:
        file.write_bytes(_IMAGES_OF_SETS[name](file.read_bytes()))
    sets = (f"coco:{root}/{split}.json:{root}/images" for split in ("train", "test"))
    outcome = _fine_tune(_settings(*sets), folder, REFUSES, file.name)
    check(not (folder / "out" / "metrics.json").exists(), "it was refused after training began")
    return Outcome(f"image of {split}, {name}: {outcome}", 1, {"refused": 1})


def _replace(old: str, new: str) -> Callable[[str], str]:
    return lambda text: text.replace(old, new)


def _corner(tag: str, value: str) -> Callable[[str], str]:
    def change(text: str) -> str:
        start, end = text.index(f"<{tag}>") + len(tag) + 2, text.index(f"</{tag}>")
        return text[:start] + value + text[end:]

    return change


_LAUGHS = (
    '<?xml version="1.0"?><!DOCTYPE a [<!ENTITY a "ha">'
    + "".join(
        f'<!ENTITY {b} "{f"&{a};" * 10}">' for a, b in zip("abcdefgh", "bcdefghi", strict=True)
    )
    + "]><annotation><object><name>&i;</name></object></annotation>"
)
_FILE = (
    '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]>'
    "<annotation><object><name>&x;</name></object></annotation>"
)

#: Name -> a change of the text of a VOC annotation, and its expected outcome.
VOC: dict[str, tuple[Callable[[str], str], str]] = {
    "box beside the image": (lambda t: _corner("xmin", "200")(_corner("xmax", "240")(t)), EITHER),
    "box partly outside": (_corner("xmax", "90"), GOES_ON),
    "box of zero width": (lambda t: _corner("xmin", "30")(_corner("xmax", "30")(t)), EITHER),
    "box turned around": (lambda t: _corner("xmin", "60")(_corner("xmax", "20")(t)), REFUSES),
    "NaN in a box": (_corner("xmin", "nan"), REFUSES),
    "infinite box": (_corner("xmax", "inf"), REFUSES),
    "a word in a box": (_corner("ymin", "left"), REFUSES),
    "no corner": (_replace("xmin", "xmum"), REFUSES),
    "no box": (_replace("bndbox", "bindbox"), REFUSES),
    "no name": (_replace("name>", "nom>"), REFUSES),
    "unknown category": (_replace("dark", "zebra"), EITHER),
    "difficult": (_replace("<difficult>0", "<difficult>1"), GOES_ON),
    "difficult is a word": (_replace("<difficult>0", "<difficult>no"), EITHER),
    "no object": (lambda t: t[: t.index("<object>")] + "</annotation>", GOES_ON),
    "empty file": (lambda t: "", REFUSES),
    "cut short": (lambda t: t[: len(t) // 2], REFUSES),
    "entities that grow to gigabytes": (lambda t: _LAUGHS, REFUSES),
    "entity of a file": (lambda t: _FILE, REFUSES),
    "no XML": (lambda t: "a picture of a dog", REFUSES),
    "spaces around a class": (_replace("<name>dark<", "<name> dark\n<"), GOES_ON),
    "a class with a capital": (_replace("<name>dark<", "<name>Dark<"), EITHER),
    "a class with an invisible character": (_replace("<name>dark<", "<name>da\u200brk<"), REFUSES),
    "a class written from right to left": (_replace("<name>dark<", "<name>\u202edark<"), REFUSES),
    "no size": (lambda t: t[: t.index("<size>")] + t[t.index("</size>") + 7 :], GOES_ON),
    "difficult is empty": (_replace("<difficult>0", "<difficult>"), GOES_ON),
    "byte order mark": (lambda t: "\ufeff" + t, GOES_ON),
    "size of another image": (
        lambda t: t.replace(f"<width>{SIDE}", "<width>640"),
        REFUSES,
    ),
}  # fmt: skip


_VOC_FILES = (
    *("missing annotation", "missing image", "listed twice", "empty split"),
    *("split with a byte order mark", "split in Latin-1", "split of a class"),
)


def voc(rng: random.Random, folder: Path, i: int) -> Outcome:
    """Fine-tune with one change of a VOC year."""
    names = [*VOC, *_VOC_FILES]
    name = names[i % len(names)]
    root = make_voc(folder / "VOC2007", images=_IMAGES)
    file = root / "Annotations" / "trainval000.xml"
    split = root / "ImageSets/Main/trainval.txt"
    expected = REFUSES
    if name in VOC:
        change, expected = VOC[name]
        file.write_text(change(file.read_text()))
    elif name == "missing annotation":
        file.unlink()
    elif name == "missing image":
        (root / "JPEGImages" / "trainval000.jpg").unlink()
    elif name == "listed twice":
        split.write_text(split.read_text() + "trainval000\n")
    elif name == "split with a byte order mark":
        split.write_text("\ufeff" + split.read_text())
        expected = GOES_ON
    elif name == "split in Latin-1":
        split.write_bytes("caf\u00e9\n".encode("latin-1"))
    elif name == "split of a class":
        split.write_text("".join(f"{line}  1\n" for line in split.read_text().split()))
    else:
        split.write_text("")
    if name != "unknown category":
        (root / "classes.txt").write_text("\n".join(CLASSES))
    settings = _settings(f"voc:{root}:trainval", f"voc:{root}:test")
    outcome = _fine_tune(settings, folder, expected, "VOC2007")
    return Outcome(f"VOC, {name}: {outcome}", 1, {outcome.split(":")[0]: 1})


KINDS = (
    Kind(
        "COCO annotation",
        "A COCO file with which no detector, or a wrong one, would be trained is refused with one "
        "sentence that names file and cause. Crowds, and up to 1 % of empty boxes, are skipped.",
        len(COCO) + len(_JSON_TEXTS),
        coco,
    ),
    Kind(
        "COCO ids and numbers",
        "Ids, sizes, areas and boxes with which an evaluation would be wrong without an error are "
        "numbered anew or refused with one sentence, in the training set and in the test set.",
        2 * len(COCO_IDS),
        coco_ids,
    ),
    Kind(
        "image of a dataset",
        "An image of the training set or the test set that cannot be opened, or has another size "
        "than its annotation says, is refused with one sentence before the first step.",
        2 * (len(_IMAGES_OF_SETS) + 1),
        set_image,
    ),
    Kind(
        "VOC annotation",
        "The same holds for a VOC year. XML entities are never expanded.",
        len(VOC) + len(_VOC_FILES),
        voc,
    ),
)
