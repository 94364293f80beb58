"""What benchmarks/faults.py tries as whole runs, as dataset dicts."""

import math

import pytest
from detectron2.structures import BoxMode

from moco_d2.errors import UserError
from moco_d2.transfer.annotation_checks import check_annotations

SOUND = {"bbox": [1, 2, 3, 4], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0}


def dicts(*annotations):
    sound = {"file_name": "sound.jpg", "annotations": [SOUND]}
    return [sound, {"file_name": "odd.jpg", "annotations": list(annotations)}]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bbox": [1, 2, math.nan, 4]}, "odd.jpg has a box that is not finite"),
        ({"bbox": [1, 2, math.inf, 4]}, "odd.jpg has a box that is not finite"),
        ({"bbox": [1, 2, -3, 4]}, "odd.jpg has a box that is turned around"),
        ({"bbox": [9, 9, 3, 12], "bbox_mode": BoxMode.XYXY_ABS}, "odd.jpg has a box that is turn"),
        ({"bbox": [1, 2, 3]}, "odd.jpg has a bbox of 3 numbers, not 4"),
        ({"bbox": ["1", "2", "3", "4"]}, "odd.jpg has the bbox .*, which is no list of numbers"),
        ({"bbox": "1234"}, "odd.jpg has the bbox '1234', which is no list of numbers"),
        ({"bbox": None}, "odd.jpg has no bbox"),
    ],
)
def test_a_box_that_is_none_is_refused_with_its_image(change, message):
    with pytest.raises(UserError, match=message):
        check_annotations("mine", dicts(SOUND, SOUND | change))


@pytest.mark.parametrize("bbox", [[1, 2, 0, 4], [-5, -5, 10, 10], [500, 500, 10, 10]])
def test_what_detectron2_passes_over_goes_on(bbox):
    check_annotations("mine", dicts(SOUND | {"bbox": bbox}, SOUND | {"iscrowd": 1}))


def test_nothing_to_train_on_is_refused():
    with pytest.raises(UserError, match="'mine' has no images"):
        check_annotations("mine", [])
    crowds = [{"file_name": "a.jpg", "annotations": [SOUND | {"iscrowd": 1}]}]
    with pytest.raises(UserError, match="no annotated object but crowds"):
        check_annotations("mine", crowds)
    check_annotations("segmentation", [{"file_name": "a.jpg", "sem_seg_file_name": "a.png"}])
