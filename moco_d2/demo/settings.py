"""Sizes of the demo. They reach the tools only as KEY VALUE overrides."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Settings:
    """Sizes of the demo.

    Attributes:
        pretrain_images, knn_test_images: Numbers of one-object images for pretraining and for kNN.
        detection_train, detection_test: Numbers of scenes in each detection set.
        pretrain_steps: Iterations of MoCo and of the supervised baseline.
        momentum, queue: MoCo's momentum and queue size. A longer run allows larger ones.
        finetune_steps: Iterations of each detector, by task. These and `pretrain_steps` were chosen
            for the time that they take, after runs of up to 160 and 650 on these scenes.
        seeds: Seeds; each detector is trained once per seed.
        network: The network, a key of networks.NETWORKS.
        same_classes: Whether there is a row whose pretraining labels are the classes to detect.
    """

    pretrain_images: int = 4000
    knn_test_images: int = 450
    detection_train: int = 200
    detection_test: int = 80
    pretrain_steps: int = 500
    momentum: float = 0.98
    queue: int = 256
    finetune_steps: tuple[tuple[str, int], ...] = (("voc_C4", 140), ("coco_C4_1x", 130))
    seeds: tuple[int, ...] = (1, 2, 3, 4, 5)
    same_classes: bool = False
    network: str = "resnet18"


SHORT = Settings()
LONG = Settings(
    pretrain_images=6000,
    detection_train=400,
    detection_test=200,
    pretrain_steps=1000,
    momentum=0.99,
    queue=512,
    finetune_steps=(("voc_C4", 240), ("coco_C4_1x", 240), ("coco_FPN_1x", 200)),
    same_classes=True,
)
VIT = Settings(
    momentum=0.99,
    finetune_steps=(("coco_vitdet_Ti_25ep", 260),),
    network="vit_tiny",
)
