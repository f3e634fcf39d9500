"""Makes a blinded, side-by-side rating page of two models, and scores the answers that come back.

    python -m zeroseg_jax.evaluate.study make --a MODEL --b MODEL --images FOLDER --out DIR [--labels "cat,grass"]
    python -m zeroseg_jax.evaluate.study score answers1.json answers2.json ... --key DIR/key.json [--json]

By default the study is that of the ZeroSeg paper: the 1000 class names of ImageNet, 200 images, five raters. The
paper took its images from the validation set of Conceptual Captions, and GroupViT as the other model.

`make` writes two files. DIR/study.html is the page for the raters; it works without a network. DIR/key.json says which
model is on which side, and the raters must not see it. Each rater opens the page, rates with the keys 1, 2 and 0 or the
arrow keys, and sends back the file that the page saves at the end. A page that is closed goes on from the same pair.
`score` prints the votes for each model, how often it is preferred, with a confidence interval, and how far the raters
agree.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from zeroseg_jax.command_line import make_parser
from zeroseg_jax.errors import InputError
from zeroseg_jax.evaluate.study.page import make_study
from zeroseg_jax.evaluate.study.score import describe, score
from zeroseg_jax.evaluate.vocabularies import load_vocabulary
from zeroseg_jax.segment.prompts import Background, parse_background


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = make_parser("python -m zeroseg_jax.evaluate.study", __doc__, skipped=1)
    commands = parser.add_subparsers(dest="command", required=True)
    maker = commands.add_parser("make", help="make the page of a study")
    for side in ("a", "b"):
        maker.add_argument(f"--{side}", required=True, metavar="MODEL", help="anything that zeroseg_jax.load takes")
    maker.add_argument("--images", required=True, metavar="FOLDER", help="the images, also those in folders below")
    words = maker.add_mutually_exclusive_group()
    words.add_argument("--labels", help='the labels of all images, with commas between: "cat,grass"')
    words.add_argument("--labels-folder", type=Path, metavar="FOLDER", help="NAME.txt of each image, one label a line")
    words.add_argument(
        "--vocabulary",
        default="imagenet",
        help="the class names of a vocabulary, by its name or a .toml file; %(default)s",
    )
    maker.add_argument(
        "--background", help="threshold such as 0.5, or phrases with commas between; such pixels get no label"
    )
    maker.add_argument("--limit", type=int, default=200, help="number of images, drawn at random; 0: all; %(default)s")
    maker.add_argument("--raters", type=int, default=5, help="number of people who will answer; %(default)s")
    maker.add_argument("--seed", type=int, default=0, help="seed of the order, the sides and the drawn images")
    maker.add_argument("--out", required=True, type=Path, help="folder for study.html and key.json")
    scorer = commands.add_parser("score", help="score answers")
    scorer.add_argument("answers", nargs="+", type=Path, help="a file of each rater")
    scorer.add_argument("--key", required=True, type=Path, help="the key.json that was made with the page")
    scorer.add_argument("--json", action="store_true", help="print the figures as one JSON object")
    return parser.parse_args(argv)


def run(arguments: argparse.Namespace) -> None:
    if arguments.command == "score":
        result = score(arguments.answers, arguments.key)
        print(json.dumps(result) if arguments.json else describe(result))
        return
    background: Background = parse_background(arguments.background)
    labels: list[str] | Path
    if arguments.labels is not None:
        labels = [label.strip() for label in arguments.labels.split(",")]
    elif arguments.labels_folder is not None:
        labels = arguments.labels_folder
    else:
        labels, background = from_vocabulary(arguments.vocabulary, background)
    trials = make_study(
        {"a": arguments.a, "b": arguments.b},
        arguments.images,
        labels,
        arguments.out,
        background=background,
        limit=arguments.limit,
        seed=arguments.seed,
        raters=arguments.raters,
    )
    page, key = arguments.out / "study.html", arguments.out / "key.json"
    print(f"{trials} pairs: send {page} to the {arguments.raters} raters, keep {key}")


def from_vocabulary(name: str, background: Background) -> tuple[list[str], Background]:
    """The class names as labels, and the rule for the background: `background`, or else the vocabulary's."""
    vocabulary = load_vocabulary(name)
    if vocabulary.background is None:
        return list(vocabulary.classes), background
    labels = [label for label in vocabulary.classes if label != "background"]
    if background is None:
        rule = vocabulary.background
        background = rule if isinstance(rule, float) else list(rule)
    return labels, background


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parse(argv)
    try:
        run(arguments)
    except InputError as error:
        print(" ".join(str(error).split()), file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
