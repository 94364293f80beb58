"""Draw test images, each in a row with its nearest training images.

A blue frame means the class of the row's first image, an orange frame with a cross another class.
The colors are from Okabe and Ito's palette for color-blind readers, and the cross needs no color.
"""

from collections.abc import Sequence

import torch
from PIL import Image, ImageDraw, ImageFont

from moco_d2.pretrain.data.image_list import ImageList
from moco_d2.pretrain.probe.knn import nearest_neighbors
from moco_d2.pretrain.probe.labeled import Features

_RIGHT, _WRONG, _QUERY = (0, 114, 178), (213, 94, 0), (0, 0, 0)
_COLUMNS = 8  # neighbors of a query
_SIDE, _FRAME, _CAPTION, _GAP = 96, 5, 16, 6  # pixels
_LETTERS = 16  # characters that fit below an image
_FONT_SIZE = 11


def neighbor_sheet(
    train_images: ImageList,
    test_images: ImageList,
    train: Features,
    test: Features,
    *,
    queries: int,
    title: str,
) -> Image.Image:
    """Return the sheet as an image.

    Args:
        train_images, test_images: Labeled images with the same classes.
        train, test: Their features and labels.
        queries: Number of rows. Their test images have even distances in the list, to show many
            classes.
        title: The line at the top.
    """
    count = min(queries, len(test_images))
    rows = [i * len(test_images) // count for i in range(count)]
    similarity, index = nearest_neighbors(train[0], test[0][rows], neighbors=_COLUMNS)
    cell = _SIDE + 2 * _FRAME + _GAP
    line = cell + _CAPTION
    head = 2 * _CAPTION + _GAP
    sheet = Image.new("RGB", (_GAP + (index.shape[1] + 1) * cell, head + count * line), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(_FONT_SIZE)
    draw.text((_GAP, 2), title, "black", font)
    draw.text(
        (_GAP, 2 + _CAPTION),
        "first: the test image; blue frame: same class; orange frame and cross: another class",
        "black",
        font,
    )
    for y, (row, near, at) in enumerate(zip(rows, similarity, index.tolist(), strict=True)):
        top = head + y * line
        label = test_images.label(row)
        cells = [(test_images.read(row), _QUERY, test_images.classes[label])]
        for value, i in zip(near.tolist(), at, strict=True):
            neighbor_label = train_images.label(i)
            name = train_images.classes[neighbor_label]
            color = _RIGHT if neighbor_label == label else _WRONG
            cells.append((train_images.read(i), color, f"{value:.2f} {name}"))
        for x, (image, color, caption) in enumerate(cells):
            left = _GAP + x * cell
            sheet.paste(_framed(image, color), (left, top))
            draw.text((left, top + _SIDE + 2 * _FRAME), caption[:_LETTERS], "black", font)
    return sheet


def _framed(image: Image.Image, color: Sequence[int]) -> Image.Image:
    """Return the center of an image in a frame, with a cross if the class is wrong."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    image = image.crop((left, top, left + side, top + side)).resize((_SIDE, _SIDE))
    framed = Image.new("RGB", (_SIDE + 2 * _FRAME,) * 2, tuple(color))
    framed.paste(image, (_FRAME, _FRAME))
    if tuple(color) == _WRONG:
        draw = ImageDraw.Draw(framed)
        # The cross is in the upper right corner, on white, to be visible on any image.
        left, right = _FRAME + _SIDE * 3 // 4, _FRAME + _SIDE - 1
        top, bottom = _FRAME, _FRAME + _SIDE // 4
        draw.rectangle((left, top, right, bottom), "white")
        draw.line((left, top, right, bottom), _WRONG, _FRAME)
        draw.line((left, bottom, right, top), _WRONG, _FRAME)
    return framed


def as_array(sheet: Image.Image) -> torch.Tensor:
    """Return the sheet as uint8 (3, H, W), the form that EventStorage.put_image takes."""
    from torchvision.transforms.functional import pil_to_tensor

    return pil_to_tensor(sheet)
