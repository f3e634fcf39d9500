"""Class names of the evaluation datasets, in the order of their masks' values."""

VOC = (
    "background",
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "table", "dog", "horse"),
    *("motorbike", "person", "plant", "sheep", "sofa", "train", "monitor"),
)
"""PASCAL VOC 2012, worded as GroupViT and SegCLIP word it: table, plant and monitor are VOC's diningtable, pottedplant
and tvmonitor."""
