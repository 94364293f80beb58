"""Every published number a second time, typed from the papers' tables and not from the YAML.

A table: what its source must say, its columns, and its rows as ``name: values``. Values are as
printed; "-" where nothing is printed, "?" after a row's name where a value of it is unconfirmed.
In COCO tables "box | mask". Names of rows are words of the row's label.
"""

VOC = "AP50 AP AP75"
BOX_AND_MASK = "APbb APbb50 APbb75 APmk APmk50 APmk75"

TABLES = {
    # ---- MoCo v1 ---------------------------------------------------------------------------------
    "linear": (
        "v1 Table 1",
        "parameters top-1",
        """
        Exemplar R50w3x: 211 46.0
        RelativePosition R50w2x: 94 51.4
        Jigsaw R50w2x: 94 44.6
        Rotation Rv50w4x: 86 55.4
        Colorization R101*: 28 39.6
        DeepCluster VGG: 15 48.4
        BigBiGAN R50: 24 56.6
        BigBiGAN Rv50w4x: 86 61.3
        InstDisc R50: 24 54.0
        LocalAgg R50: 24 58.8
        CPC v1 R101*: 28 48.7
        CPC v2 R170* wider: 303 65.9
        CMC R50 L+ab †: 47 64.1
        CMC R50w2x L+ab †: 188 68.4
        AMDIM small †: 194 63.5
        AMDIM large †: 626 68.1
        MoCo R50: 24 60.6
        MoCo RX50: 46 63.9
        MoCo R50w2x: 94 65.4
        MoCo R50w4x: 375 68.6
        """,
    ),
    "figure_3": (
        "v1 Figure 3",
        "256 512 1024 4096 16384 65536",
        """
        end-to-end: 54.9 56.3 57.3 - - -
        memory bank: 50.0 52.0 54.1 56.5 57.8 58.0
        MoCo: 54.7 56.4 57.5 59.0 60.4 60.6
        """,
    ),
    "momentum": ("v1 4.1", "0 0.9 0.99 0.999 0.9999", "MoCo: - 55.2 57.8 59.0 58.9"),
    "voc_dilated_C5": (
        "v1 Table 2a",
        VOC,
        """
        random: 64.4 37.9 38.6
        super. IN-1M: 81.4 54.0 59.1
        MoCo IN-1M: 81.1 54.6 59.9
        MoCo IG-1B: 81.6 55.5 61.2
        """,
    ),
    "voc_C4": (
        "v1 Table 2b",
        VOC,
        """
        random: 60.2 33.8 33.1
        super. IN-1M: 81.3 53.5 58.8
        MoCo IN-1M: 81.5 55.9 62.6
        MoCo IG-1B: 82.2 57.2 63.7
        """,
    ),
    "voc_dilated_C5_mechanisms": (
        "v1 Table 3",
        VOC,
        """
        end-to-end: 79.2 52.0 56.6
        memory bank: 79.8 52.9 57.9
        MoCo: 81.1 54.6 59.9
        """,
    ),
    "voc_C4_mechanisms": (
        "v1 Table 3",
        VOC,
        """
        end-to-end: 80.4 54.6 60.3
        memory bank: 80.6 54.9 60.6
        MoCo: 81.5 55.9 62.6
        """,
    ),
    "voc07_C4": (
        "v1 Table 4",
        VOC,
        """
        super. IN-1M: 74.4 42.4 42.7
        MoCo IN-1M: 74.9 46.6 50.1
        MoCo IN-14M: 75.2 46.9 50.2
        MoCo YFCC-100M: 74.7 45.9 49.0
        MoCo IG-1B: 75.6 47.6 51.7
        """,
    ),
    "voc07_C4_methods": (
        "v1 Table 4",
        "RelPos-AP50 Multi-task-AP50 Jigsaw-AP50 LocalAgg-AP50 MoCo-AP50 MoCo-AP Multi-task-AP75 "
        "MoCo-AP75",
        """
        super. IN-1M: 74.2 74.2 70.5 74.6 74.4 42.4 44.3 42.7
        unsup. IN-1M: 66.8 70.5 61.4 69.1 74.9 46.6 43.9 50.1
        unsup. IN-14M: - - 69.2 - 75.2 46.9 - 50.2
        unsup. YFCC-100M: - - 66.6 - 74.7 45.9 - 49.0
        unsup. IG-1B: - - - - 75.6 47.6 - 51.7
        """,
    ),
    "coco_FPN_1x": (
        "v1 Table 5a",
        BOX_AND_MASK,
        """
        random: 31.0 49.5 33.2 | 28.5 46.8 30.4
        super. IN-1M: 38.9 59.6 42.7 | 35.4 56.5 38.1
        MoCo IN-1M: 38.5 58.9 42.0 | 35.1 55.9 37.7
        MoCo IG-1B: 38.9 59.4 42.3 | 35.4 56.5 37.9
        """,
    ),
    "coco_FPN_2x": (
        "v1 Table 5b",
        BOX_AND_MASK,
        """
        random: 36.7 56.7 40.0 | 33.7 53.8 35.9
        super. IN-1M: 40.6 61.3 44.4 | 36.8 58.1 39.5
        MoCo IN-1M: 40.8 61.6 44.7 | 36.9 58.4 39.7
        MoCo IG-1B: 41.1 61.8 45.1 | 37.4 59.1 40.2
        """,
    ),
    "coco_C4_1x": (
        "v1 Table 5c",
        BOX_AND_MASK,
        """
        random: 26.4 44.0 27.8 | 29.3 46.9 30.8
        super. IN-1M: 38.2 58.2 41.2 | 33.3 54.7 35.2
        MoCo IN-1M: 38.5 58.3 41.6 | 33.6 54.8 35.6
        MoCo IG-1B: 39.1 58.7 42.2 | 34.1 55.4 36.4
        """,
    ),
    "coco_C4_2x": (
        "v1 Table 5d",
        BOX_AND_MASK,
        """
        random: 35.6 54.6 38.2 | 31.4 51.5 33.5
        super. IN-1M: 40.0 59.9 43.1 | 34.7 56.5 36.9
        MoCo IN-1M: 40.7 60.5 44.1 | 35.4 57.3 37.6
        MoCo IG-1B: 41.1 60.7 44.8 | 35.6 57.4 38.1
        """,
    ),
    "coco_FPN_6x": (
        "v1 Table A.1",
        BOX_AND_MASK,
        """
        random: 41.4 61.9 45.1 | 37.6 59.1 40.3
        super. IN-1M: 41.9 62.5 45.6 | 38.0 59.6 40.8
        MoCo IN-1M: 42.3 62.7 46.2 | 38.3 60.1 41.2
        MoCo IG-1B: 42.8 63.2 47.0 | 38.7 60.5 41.3
        """,
    ),
    "coco_keypoint_FPN_2x": (
        "v1 Table 6",
        "APkp APkp50 APkp75",
        """
        random: 65.9 86.5 71.7
        super. IN-1M: 65.8 86.9 71.9
        MoCo IN-1M: 66.8 87.4 72.5
        MoCo IG-1B: 66.9 87.8 73.0
        """,
    ),
    "coco_densepose_FPN_s1x": (
        "v1 Table 6",
        "APdp APdp50 APdp75",
        """
        random: 39.4 78.5 35.1
        super. IN-1M: 48.3 85.6 50.6
        MoCo IN-1M: 50.1 86.8 53.9
        MoCo IG-1B: 50.6 87.0 54.3
        """,
    ),
    "lvis_v0.5_FPN_2x": (
        "v1 Table 6",
        "APmk APmk50 APmk75",
        """
        random: 22.5 34.8 23.8
        super. frozen: 24.4 37.8 25.8
        MoCo IN-1M: 24.1 37.4 25.5
        MoCo IG-1B: 24.9 38.2 26.4
        """,
    ),
    "lvis_v0.5_FPN_2x_ablation": (
        "v1 appendix",
        "APmk APmk50 APmk75",
        """
        super. frozen: 24.4 37.8 25.8
        super. tuned: 23.2 36.0 24.4
        MoCo IN-1M tuned: 24.1 37.4 25.5
        MoCo IG-1B tuned: 24.9 38.2 26.4
        """,
    ),
    "lvis_v0.5_FPN_1x": (
        "v1 appendix",
        "APmk APmk50 APmk75",
        """
        super. frozen: 24.1 37.3 25.4
        super. tuned: 23.5 36.6 24.8
        MoCo IN-1M tuned: 23.2 36.0 24.7
        MoCo IG-1B tuned: 24.3 37.4 25.9
        """,
    ),
    "cityscapes_instance_FPN": (
        "v1 Table 6",
        "APmk APmk50",
        """
        random: 25.4 51.1
        super. IN-1M: 32.9 59.6
        MoCo IN-1M: 32.3 59.3
        MoCo IG-1B: 32.9 60.3
        """,
    ),
    "cityscapes_semantic": (
        "v1 Table 6",
        "mIoU",
        "random: 65.3 \n super.: 74.6 \n MoCo IN-1M: 75.3 \n MoCo IG-1B: 75.5",
    ),
    "voc_semantic": (
        "v1 Table 6",
        "mIoU",
        "random: 39.5 \n super.: 74.4 \n MoCo IN-1M: 72.5 \n MoCo IG-1B: 73.6",
    ),
    "inaturalist": (
        "v1 appendix",
        "top-1",
        "random: 61.8 \n super.: 66.1 \n MoCo IN-1M: 65.6 \n MoCo IG-1B: 65.8",
    ),
    "imagenet_finetune": (
        "v1 appendix",
        "top-1",
        "random: 76.5 \n MoCo IN-1M: 77.0 \n MoCo IG-1B: 77.3",
    ),
    # ---- MoCo v2 and the official repository -----------------------------------------------------
    "voc_C4_v2": (
        "v2 Table 1",
        VOC,
        """
        supervised: 81.3 53.5 58.8
        v1 200: 81.5 55.9 62.6
        (a) MLP 200?: 82.0 56.4 62.6
        (b) aug+ 200?: 82.2 56.8 63.2
        (c) MLP aug+ 200?: 82.5 57.2 63.9
        (d) MLP aug+ cos 200: 82.4 57.0 63.6
        (e) MLP aug+ cos 800: 82.5 57.4 64.0
        """,
    ),
    "linear_v2": (
        "v2 Table 1",
        "top-1",
        """
        supervised: 76.5
        v1 200: 60.6
        (a) MLP 200: 66.2
        (b) aug+ 200: 63.4
        (c) MLP aug+ 200: 67.3
        (d) MLP aug+ cos 200: 67.5
        (e) MLP aug+ cos 800: 71.1
        """,
    ),
    "temperature_v2": (
        "v2 3",
        "0.07 0.1 0.2 0.3 0.4 0.5",
        """
        without: 60.6 60.7 59.0 58.2 57.2 56.4
        with: 62.9 64.9 66.2 65.7 65.0 64.3
        """,
    ),
    "linear_v2_simclr": (
        "v2 Table 2",
        "epochs batch top-1",
        """
        MoCo v1: 200 256 60.6
        SimCLR: 200 256 61.9
        SimCLR?: 200 8192 66.6
        MoCo v2: 200 256 67.5
        SimCLR?: 1000 4096 69.3
        MoCo v2: 800 256 71.1
        """,
    ),
    "cost_v2": (
        "v2 Table 3",
        "batch GB hours",
        """
        MoCo: 256 5.0 53
        end-to-end: 256 7.4 65
        end-to-end: 4096 93.0 -
        """,
    ),
    "voc_C4_readme": (
        "README",
        VOC,
        """
        IN-1M supervised: 81.3 53.5 58.8
        v1 200: 81.5 55.9 62.6
        v2 200: 82.4 57.0 63.6
        v2 800: 82.5 57.4 64.0
        """,
    ),
    "linear_readme": (
        "README",
        "epochs top-1",
        "v1: 200 60.6 \n v2: 200 67.7 \n v2: 800 71.1",
    ),
    "linear_readme_trials": (
        "README",
        "1 2 3 4 5 mean deviation",
        """
        v1: 60.6 60.6 60.7 60.9 61.1 60.8 0.2
        v2: 67.7 67.6 67.4 67.6 67.3 67.5 0.1
        """,
    ),
    "cifar10_demo": (
        "colab-notebook",
        "200 400 800",
        "asymmetric: 82.6 86.3 88.7 \n symmetric: 85.3 88.5 89.7",
    ),
    # ---- others ----------------------------------------------------------------------------------
    "coco_FPN4conv1fc_1x": (
        "PyContrast",
        "APbb APmk",
        """
        random: 32.8 | 29.9
        supervised: 39.7 | 35.9
        v1: 39.4 | 35.6
        v2 200 InsLoc: 39.8 | 36.1
        v2 800: 40.4 | 36.4
        v2 800 InsLoc: 40.4 | 36.4
        v2, mmselfsup: 40.2 | 36.1
        InfoMin: 40.6 | 36.7
        InstDis: 38.8 | 35.2
        PIRL: 38.6 | 35.1
        SimCLR 1000: 39.8 | 35.9
        PixPro 100: 40.8 | 36.8
        BYOL 200 mmselfsup: 40.9 | 36.8
        SimSiam 100 mmselfsup: 38.6 | 34.6
        SimSiam 200 mmselfsup: 38.8 | 34.9
        SwAV 200 mmselfsup: 40.2 | 36.3
        """,
    ),
    "coco_FPN4conv1fc_2x": (
        "PyContrast",
        "APbb APmk",
        """
        random: 38.4 | 34.7
        supervised: 41.6 | 37.6
        v1: 41.7 | 37.5
        v2: 41.7 | 37.6
        v2 200 InsLoc: 41.7 | 37.6
        v2 800 InsLoc: 42.5 | 38.2
        InfoMin: 42.5 | 38.4
        InstDis: 41.3 | 37.3
        PIRL: 41.2 | 37.4
        """,
    ),
    "coco_FPN4conv1fc_6x": (
        "PyContrast",
        "APbb APmk",
        "random: 42.7 | 38.6 \n supervised: 42.6 | 38.5 \n InfoMin: 43.6 | 39.2",
    ),
    "coco_FPN_others": (
        "named",
        "APbb APmk",
        "v1, user's: - | 34.8",
    ),
    "voc_C4_later": (
        "PixPro",
        "AP AP50 AP75",
        """
        v2 800 PixPro: 57.6 82.7 64.4
        DenseCL: 58.7 - -
        SimCLR: 56.3 81.9 62.5
        InfoMin: 57.6 82.7 64.6
        PixPro 100: 58.8 83.0 66.5
        PixPro 400: 60.2 83.8 67.7
        InstDis 200: 55.2 80.9 61.2
        PIRL 200: 55.5 81.0 61.3
        DetCo 100: 57.4 82.5 63.9
        DetCo 200: 57.8 82.6 64.2
        DetCo 800: 58.2 82.7 65.0
        """,
    ),
    "voc_C4_simsiam": (
        "2011.10566 5",
        VOC,
        """
        ImageNet supervised: 81.3 53.5 58.8
        SimCLR: 81.8 55.5 61.4
        MoCo v2: 82.3 57.0 63.3
        BYOL: 81.4 55.3 61.1
        SwAV: 81.5 55.4 61.4
        SimSiam, base: 82.0 56.4 62.8
        SimSiam, optimal: 82.4 57.0 63.7
        """,
    ),
    "voc_C4_barlow_twins": (
        "2103.03230 4",
        "AP AP50 AP75",
        "Sup.: 53.5 81.3 58.8 \n SwAV: 56.1 82.6 62.7 \n Barlow Twins: 56.8 82.6 63.4",
    ),
    "voc_C4_others": (
        "projects",
        "AP AP50 AP75",
        """
        OpenSelfSup random: 32.83 59.02 31.60
        OpenSelfSup supervised: 54.19 81.58 59.80
        OpenSelfSup NPID: 54.11 80.03 59.50
        OpenSelfSup v1: 55.95 81.38 62.23
        OpenSelfSup v2: 56.97 82.24 63.43
        OpenSelfSup SimCLR: 51.54 79.41 55.63
        OpenSelfSup BYOL: 49.00 79.60 52.80
        NPID++ fixed: 52.3 79.1 56.9
        PIRL fixed: 54.0 80.7 59.7
        Detectron2 zoo: 51.9 80.3 -
        v2, mmselfsup: - 81.06 -
        """,
    ),
    "coco_C4_1x_later": (
        "PixPro",
        "APbb APmk",
        """
        v2 200 InsLoc: 38.9 | 34.1
        v2 800 InsLoc: 39.3 | 34.3
        v2 800: 39.5 | 34.5
        SimCLR: 38.4 | 33.6
        InfoMin: 39.0 | 34.1
        PixPro 100: 40.0 | 34.8
        PixPro 400: 40.5 | 35.3
        SoCo 100: 40.4 | 34.9
        SoCo 400: 40.9 | 35.3
        """,
    ),
    "coco_C4_1x_detco": (
        "xieenze/DetCo, 4",
        BOX_AND_MASK,
        """
        Supervised: 38.2 58.2 41.2 | 33.3 54.7 35.2
        InstDis: 37.7 57.0 40.9 | 33.0 54.1 35.2
        PIRL: 37.4 56.5 40.2 | 32.7 53.4 34.7
        SwAV: 32.9 54.3 34.5 | 29.5 50.4 30.4
        v2: 38.9 58.4 42.0 | 34.2 55.2 36.5
        DetCo: 39.4 59.2 42.3 | 34.4 55.7 36.6
        DetCo AutoAugment: 39.8 59.7 43.0 | 34.7 56.3 36.7
        """,
    ),
    "coco_FPN_1x_detco": (
        "xieenze/DetCo, 4",
        BOX_AND_MASK,
        """
        Supervised: 38.9 59.6 42.7 | 35.4 56.5 38.1
        InstDis: 37.4 57.6 40.6 | 34.1 54.6 36.4
        PIRL: 37.5 57.6 41.0 | 34.0 54.6 36.2
        SwAV: 38.5 60.4 41.4 | 35.4 57.0 37.7
        v2: 38.9 59.4 42.4 | 35.5 56.5 38.1
        DetCo: 39.5 60.3 43.1 | 35.9 56.9 38.6
        DetCo AutoAugment: 40.1 61.0 43.9 | 36.4 58.0 38.9
        """,
    ),
    "coco_C4_1x_simsiam": (
        "2011.10566 5",
        "APbb50 APbb APbb75 APmk50 APmk APmk75",
        """
        ImageNet supervised: 58.2 38.2 41.2 | 54.7 33.3 35.2
        SimCLR: 57.7 37.9 40.9 | 54.6 33.3 35.3
        MoCo v2: 58.8 39.2 42.5 | 55.5 34.3 36.6
        BYOL: 57.8 37.9 40.9 | 54.3 33.2 35.0
        SwAV: 57.6 37.6 40.3 | 54.2 33.1 35.1
        SimSiam, base: 57.5 37.9 40.9 | 54.2 33.2 35.2
        SimSiam, optimal: 59.3 39.2 42.1 | 56.0 34.4 36.7
        """,
    ),
    "coco_C4_1x_barlow_twins": (
        "2103.03230 4",
        BOX_AND_MASK,
        """
        Sup.: 38.2 58.2 41.2 | 33.3 54.7 35.2
        SwAV: 38.4 58.6 41.3 | 33.8 55.2 35.9
        Barlow Twins: 39.2 59.0 42.5 | 34.3 56.0 36.5
        """,
    ),
    "coco_C4_2x_later": (
        "papers",
        BOX_AND_MASK,
        """
        v1 (OpenSelfSup): 40.9 60.5 44.2 | 35.5 57.1 37.7
        v2 (OpenSelfSup): 41.0 60.6 44.5 | 35.6 57.2 38.0
        v2 200 InsLoc: 40.7 - - | 35.6 - -
        v2 800 InsLoc: 41.2 - - | 35.8 - -
        BYOL: 40.2 60.6 43.3 | 34.9 57.0 36.7
        SimCLR: 39.6 59.1 42.9 | 34.6 55.9 37.1
        NPID: 39.4 59.0 42.8 | 34.5 55.9 36.6
        InfoMin: 41.3 - - | 36.0 - -
        """,
    ),
    "linear_later": (
        "projects",
        "epochs linear kNN",
        """
        v2 (mmselfsup): - 67.5 -
        v2 (VISSL): - 66.4 -
        v2+ (solo-learn): 100 66.84 -
        v2 (lightly): 100 61.5 41.8
        v3: 100 68.9 -
        v3: 300 72.8 -
        v3: 1000 74.6 -
        """,
    ),
    # ---- vision transformers, from the collected facts ------------------------------------------
    "coco_vitdet_B_100ep": (
        "2111.11429 quotes",
        "APbb",
        "random: 48.9\nsupervised IN-1K: 47.9\nMoCo v3: 47.9\nBEiT: 49.8\nMAE: 50.3",
    ),
    "coco_vitdet_B_100ep_masks": (
        "2111.11429",
        "APmk",
        "random?: 43.6\nsupervised IN-1K?: 42.9\nMoCo v3?: 42.7\nBEiT?: 44.4\nMAE?: 44.9",
    ),
    "coco_vitdet_L_100ep": (
        "2111.11429 quotes",
        "APbb",
        "random: 50.7\nsupervised IN-1K: 49.3\nMoCo v3: 49.3\nBEiT: 53.3\nMAE: 53.3",
    ),
    "coco_vitdet_B_table_4": (
        "2203.16527 Table 4",
        "APbb APmk",
        """
        none: 48.1|42.6
        IN-1K sup: 47.6|42.4
        IN-21K sup: 47.8|42.6
        IN-1K MAE: 51.2|45.5
        """,
    ),
    "coco_vitdet_L_table_4": (
        "2203.16527 Table 4",
        "APbb APmk",
        """
        none: 50.0|44.2
        IN-1K sup: 49.6|43.8
        IN-21K sup: 50.6|44.8
        IN-1K MAE: 54.6|48.6
        """,
    ),
    "lvis_v1_vitdet_B_100ep": (
        "2203.16527 Table 10",
        "APbb APmk",
        """
        IN-1K sup: 37.2|34.9
        IN-21K sup: 38.7|36.3
        IN-1K MAE: 40.1|38.1
        """,
    ),
    "lvis_v1_vitdet_L_100ep": (
        "2203.16527 Table 10",
        "APbb APmk",
        """
        IN-1K sup: 38.3|36.0
        IN-21K sup: 42.1|39.5
        IN-1K MAE: 46.1|43.5
        """,
    ),
    "coco_vit_mimdet": (
        "README MIMDet",
        "APbb APmk",
        """
        MAE 25: 48.0|43.0
        MAE 50: 50.2|44.9
        MAE 100: 50.4|44.9
        """,
    ),
    "coco_vitdet_Ti_100ep": (
        "README MAE-Lite",
        "APbb APmk",
        """
        DeiT: 40.4|35.5
        MAE: 39.9|35.4
        MoCo v3: 39.7|35.1
        distilled: 42.5|37.5
        """,
    ),
}

#: Which row each table's differences are taken to, by its number from 0; the rest have none.
_FIRST = (
    *("voc07_C4", "voc07_C4_methods", "voc_C4_v2", "voc_C4_readme"),
    *("lvis_v0.5_FPN_2x_ablation", "lvis_v0.5_FPN_1x"),
    *("lvis_v1_vitdet_B_100ep", "lvis_v1_vitdet_L_100ep", "coco_vitdet_Ti_100ep"),
    *("voc_C4_simsiam", "voc_C4_barlow_twins", "coco_C4_1x_simsiam", "coco_C4_1x_barlow_twins"),
    *("coco_C4_1x_detco", "coco_FPN_1x_detco"),
)
_SECOND = (
    *("coco_vitdet_B_100ep", "coco_vitdet_B_100ep_masks", "coco_vitdet_L_100ep"),
    *("coco_vitdet_B_table_4", "coco_vitdet_L_table_4"),
    *("voc_dilated_C5", "voc_C4", "voc_semantic", "cityscapes_semantic", "cityscapes_instance_FPN"),
    *("coco_FPN_1x", "coco_FPN_2x", "coco_FPN_6x", "coco_C4_1x", "coco_C4_2x"),
    *("coco_keypoint_FPN_2x", "coco_densepose_FPN_s1x", "lvis_v0.5_FPN_2x", "inaturalist"),
    *("coco_FPN4conv1fc_1x", "coco_FPN4conv1fc_2x", "coco_FPN4conv1fc_6x"),
)
BASELINES = {**dict.fromkeys(_FIRST, 0), **dict.fromkeys(_SECOND, 1)}

#: Runs behind each number, where the source says it; and the published spread of single runs.
FIVE_TRIALS = {
    *("voc_dilated_C5", "voc_C4", "voc07_C4", "voc_C4_v2", "voc_C4_readme"),
    *("cityscapes_semantic", "voc_semantic", "voc_C4_simsiam"),
    *("lvis_v0.5_FPN_2x_ablation", "lvis_v0.5_FPN_1x"),
}
STD = {"AP50": 0.2, "AP": 0.2, "AP75": 0.4}
WITH_STD = {"voc_C4", "voc_C4_v2", "voc_C4_readme"}


def rows(name: str) -> list[tuple[str, list[str]]]:
    """Rows of a table: name, values as printed."""
    lines = [line.strip() for line in TABLES[name][2].strip().splitlines()]
    pairs = [line.rsplit(":", 1) for line in lines]
    return [(row.strip(), values.replace("|", " ").split()) for row, values in pairs]
