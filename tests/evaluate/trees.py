"""Small trees of files in the layouts of the benchmarks."""

import numpy as np
from PIL import Image

from zeroseg_jax.config import default_config
from zeroseg_jax.evaluate.benchmarks import open_benchmark


def options(dataset, root, **others):
    config = default_config()
    config.eval.update(dataset=dataset, root=str(root), **others)
    return config


def opened(dataset, root, **others):
    return open_benchmark(options(dataset, root, **others).eval)


def write_image(path, size=(2, 3)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((*size, 3), 90, np.uint8)).save(path)


def write_mask(path, values, palette=False):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.array(values, np.uint8))
    if palette:
        image.putpalette(list(range(255, -1, -1)) * 3)
    image.save(path)


def write_voc(root, masks, folder="SegmentationClass", lists="Segmentation", palette=True):
    """A tree in VOC's layout; `masks` are the values by name, of which val.txt has all."""
    for name, values in masks.items():
        write_image(root / f"JPEGImages/{name}.jpg", np.shape(values))
        write_mask(root / f"{folder}/{name}.png", values, palette)
    path = root / f"ImageSets/{lists}/val.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{name}\n" for name in masks))
    return root


def write_context(root, order, boxes=("dog", "tvmonitor", "horse", "person")):
    """An image for each of VOC's classes in `boxes`, on grass, with its mask in the given order of classes."""
    masks = {}
    for name in boxes:
        masks[name] = np.full((4, 6), order.index("grass"))
        masks[name][1:3, 2:5] = order.index(name)
        annotation = f"""<annotation><object><name>{name}</name><difficult>0</difficult><bndbox><xmin>3</xmin>
            <ymin>2.0</ymin><xmax>5</xmax><ymax>3</ymax></bndbox></object></annotation>"""
        path = root / f"VOC2010/Annotations/{name}.xml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(annotation)
    return write_voc(root / "VOC2010", masks, "SegmentationClassContext", "SegmentationContext", palette=False)


MASK = [[0, 1, 20], [15, 255, 0]]
