"""What campaigns/faults.py tries as whole runs, as dataset dicts."""

import math

import pytest
from detectron2.structures import BoxMode

from moco_d2.errors import UserError
from moco_d2.transfer.data.annotation_checks import check_annotations

SOUND = {"bbox": [1, 2, 3, 4], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0}


def dicts(*annotations):
    sound = {"file_name": "sound.jpg", "annotations": [SOUND]}
    odd = {"file_name": "odd.jpg", "height": 60, "width": 80, "annotations": list(annotations)}
    return [sound, odd]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bbox": [1, 2, math.nan, 4]}, "odd.jpg has a box that is not finite"),
        ({"bbox": [1, 2, math.inf, 4]}, "odd.jpg has a box that is not finite"),
        ({"bbox": [1, 2, -3, 4]}, "odd.jpg has an inverted box"),
        ({"bbox": [9, 9, 3, 12], "bbox_mode": BoxMode.XYXY_ABS}, "odd.jpg has an inverted box"),
        ({"bbox": [1, 2, 3]}, "odd.jpg has a bbox of 3 numbers, not 4"),
        ({"bbox": ["1", "2", "3", "4"]}, "odd.jpg has the bbox .*, which is not a list of numbers"),
        ({"bbox": "1234"}, "odd.jpg has the bbox '1234', which is not a list of numbers"),
        ({"bbox": None}, "odd.jpg has no bbox"),
        ({"iscrowd": None}, "odd.jpg has the iscrowd None, which is not 0 or 1"),
        ({"iscrowd": "0"}, "odd.jpg has the iscrowd '0', which is not 0 or 1"),
        ({"bbox": [1, 2, 10**30, 4]}, "odd.jpg has a box that is not finite"),
        ({"bbox": [1, 2, 1e30, 4]}, "odd.jpg has a box that is not finite"),
        ({"segmentation": {"size": [9, 9], "counts": [81]}}, "odd.jpg has a mask of 9 x 9 pixels"),
        ({"segmentation": {"size": [60, 80], "counts": "P"}}, "odd.jpg has a mask whose counts"),
        (
            {"segmentation": [[1, 1, 1e30, 1, 9, 9]]},
            r"a polygon with the coordinate 1e\+30",
        ),
        ({"segmentation": [[1, 1, math.nan, 1, 9, 9]]}, "odd.jpg has a polygon that is not finite"),
        ({"keypoints": [1, 2]}, "odd.jpg has keypoints that are not triples of finite"),
        ({"keypoints": [1, math.nan, 2]}, "odd.jpg has keypoints that are not triples of finite"),
        ({"keypoints": "abc"}, "odd.jpg has keypoints that are not triples of finite"),
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
    with pytest.raises(UserError, match="no annotated object except crowds"):
        check_annotations("mine", crowds)
    check_annotations("segmentation", [{"file_name": "a.jpg", "sem_seg_file_name": "a.png"}])


@pytest.mark.parametrize("side", [10**9, 0, None, math.nan, "640"])
def test_an_image_of_no_size_or_of_gigabytes_is_refused(side):
    """Detectron2 draws a polygon into as many pixels as the file declares."""
    odd = dicts(SOUND)
    odd[1]["width"] = side
    with pytest.raises(UserError, match=r"^dataset 'mine': odd\.jpg has height 60 and width "):
        check_annotations("mine", odd)


def test_sound_masks_go_on():
    polygon, runs = [[-3, 0, 90, 0, 40, 70]], {"size": [60, 80], "counts": [4700, 100]}
    check_annotations("mine", dicts(*(SOUND | {"segmentation": mask} for mask in (polygon, runs))))
    check_annotations("mine", dicts(SOUND | {"keypoints": [1.5, 2.5, 2] * 17}))
