"""The score of a study: how often each model is preferred, with intervals, and the agreement of the raters."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int, Int64

from zeroseg_jax.errors import InputError
from zeroseg_jax.evaluate.metrics import percentile_interval

CHOICES = ("left", "right", "tie")
A, B, TIE = range(3)
RESAMPLES, LEVEL = 10_000, 0.95
Z = 1.959964
"""The normal quantile of `LEVEL`."""


def score(answers: Sequence[Path], key: Path) -> dict[str, Any]:
    """Scores the answers of the raters, one file each, with the key of their study.

    Returns, with all shares in [0, 1]:
        `preference`: the share of votes for "a". A tie counts as half a vote for each model. Its `interval` is a
            percentile bootstrap over the images, because votes on one image depend on each other.
        `votes`: the numbers of votes for "a" and "b", and of ties.
        `images`: the number of images that each model wins by majority, the share of "a" among images with a winner,
            and its Wilson interval.
        `agreement`: Krippendorff's nominal alpha over the votes for "a", "b" and ties. 1 is perfect, 0 is chance. None
            with one rater, or if all votes are the same.
        `left`: the share of the left side among the votes that are no ties. It should be close to 1/2.
        `raters`: the number of pairs, of `pairs`, that each rater answered.
        `expected`: the votes of a complete study: `pairs` x the planned raters, or the actual ones if there are more.

    Raises:
        InputError: a file is not a key or not answers, belongs to another study, or is the second one of a rater.
    """
    made = _read(key, ("study", "a", "b", "trials"), "a study's key.json")
    votes = np.zeros((len(made["trials"]), 3), np.int64)
    sides = np.zeros(3, np.int64)
    raters: dict[str, int] = {}
    for path in answers:
        content = _read(path, ("study", "rater", "answers"), "answers that the page saved")
        if content["study"] != made["study"]:
            raise InputError(
                f"{path} answers the study {content['study']}, but {key} is of {made['study']}; give its key"
            )
        if content["rater"] in raters:
            raise InputError(f"{path} is a second file of the rater {content['rater']!r}; give one file of each rater")
        chosen = _choices(content["answers"], len(votes), path)
        raters[content["rater"]] = len(chosen)
        for trial, choice in chosen.items():
            sides[CHOICES.index(choice)] += 1
            votes[trial, _vote(choice, made["trials"][trial]["left"])] += 1
    if not votes.any():
        raise InputError("there is not a single answer in the files; let the raters answer first")
    decided = int(sides[:2].sum())
    return {
        "a": made["a"],
        "b": made["b"],
        "preference": preference(votes),
        "votes": {"a": int(votes[:, A].sum()), "b": int(votes[:, B].sum()), "tie": int(votes[:, TIE].sum())},
        "images": majorities(votes),
        "agreement": krippendorff_alpha(votes),
        "left": int(sides[0]) / decided if decided else None,
        "raters": raters,
        "pairs": len(votes),
        "expected": len(votes) * max(made.get("raters", 0), len(raters)),
    }


def preference(votes: Int64[np.ndarray, "n 3"], seed: int = 0) -> dict[str, Any]:
    """The share of votes for "a", where ties count as half, and its bootstrap interval over the images."""
    answered = votes[votes.any(axis=1)]
    for_a, total = answered[:, A] + 0.5 * answered[:, TIE], answered.sum(axis=1)
    rng, images = np.random.default_rng(seed), len(answered)
    samples = []
    for _ in range(0, RESAMPLES, 1000):  # 1000 samples at once, to bound the memory
        draws = rng.multinomial(images, np.full(images, 1 / images), size=1000)
        samples.append((draws @ for_a) / (draws @ total))
    return {
        "rate": float(for_a.sum() / total.sum()),
        "interval": list(percentile_interval(np.concatenate(samples), LEVEL)),
    }


def majorities(votes: Int64[np.ndarray, "n 3"]) -> dict[str, Any]:
    """The number of images each model wins, and the share of "a" among images with a winner, with its interval."""
    wins, losses = int((votes[:, A] > votes[:, B]).sum()), int((votes[:, A] < votes[:, B]).sum())
    even = int(votes.any(axis=1).sum()) - wins - losses
    result: dict[str, Any] = {"a": wins, "b": losses, "even": even, "rate": None, "interval": None}
    if wins + losses:
        result |= {"rate": wins / (wins + losses), "interval": list(wilson_interval(wins, wins + losses))}
    return result


def wilson_interval(successes: int, trials: int) -> tuple[float, float]:
    """The 95 % score interval of a proportion (Wilson 1927)."""
    share = successes / trials
    centre = (share + Z**2 / (2 * trials)) / (1 + Z**2 / trials)
    half = Z / (1 + Z**2 / trials) * np.sqrt(share * (1 - share) / trials + Z**2 / (4 * trials**2))
    return max(0.0, float(centre - half)), min(1.0, float(centre + half))


def krippendorff_alpha(votes: Int[np.ndarray, "n c"]) -> float | None:
    """Krippendorff's alpha for nominal values ("Computing Krippendorff's Alpha-Reliability", 2011, section C).

    `votes` counts the raters that gave each value to each unit. Raters may leave units out, and units with one vote do
    not count. None if no unit has two votes, or if all votes are the same.
    """
    paired = votes[votes.sum(axis=1) > 1].astype(np.float64)
    raters, totals = paired.sum(axis=1, keepdims=True), paired.sum(axis=0)
    n = totals.sum()
    expected = n**2 - (totals**2).sum()
    if not expected:
        return None
    same: Float[np.ndarray, ""] = (paired * (paired - 1) / (raters - 1)).sum()
    return float(1 - (n - 1) * (n - same) / expected)


def describe(result: Mapping[str, Any]) -> str:
    """The figures of `score` as a few lines of text."""
    votes, images, rate = result["votes"], result["images"], result["preference"]
    alpha = result["agreement"]
    count, expected = sum(votes.values()), result["expected"]
    lines = [
        f"a = {result['a']}, b = {result['b']}",
        f"votes of {expected} ({result['pairs']} images x {expected // result['pairs']} raters): {votes['a']} for a,"
        f" {votes['b']} for b, {votes['tie']} ties" + (f", {expected - count} not given" if count < expected else ""),
        f"a is preferred in {_percent(rate)} of the votes given, ties counting as half (bootstrap over images)",
        f"by majority a wins {images['a']} images, b {images['b']}, {images['even']} are even"
        + (f"; a wins {_percent(images)} of those with a winner (Wilson)" if images["rate"] is not None else ""),
        f"agreement of {len(result['raters'])} raters, Krippendorff's alpha:"
        f" {'-' if alpha is None else f'{alpha:.2f}'}",
    ]
    if result["left"] is not None:
        lines.append(f"the left side got {result['left']:.0%} of the votes that are no ties")
    for rater, answered in result["raters"].items():
        if answered < result["pairs"]:
            lines.append(f"{rater} answered {answered} of {result['pairs']} pairs")
    return "\n".join(lines)


def _percent(share: Mapping[str, Any]) -> str:
    low, high = share["interval"]
    return f"{100 * share['rate']:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"


def _vote(choice: str, left: str) -> int:
    if choice == "tie":
        return TIE
    return A if (choice == "left") == (left == "a") else B


def _choices(answers: Any, pairs: int, path: Path) -> dict[int, str]:
    """The choice for each answered pair."""
    choices: dict[int, str] = {}
    for answer in answers if isinstance(answers, list) else [answers]:
        match answer:
            case {"trial": int(trial), "choice": str(choice)} if 0 <= trial < pairs and choice in CHOICES:
                if trial in choices:
                    raise InputError(f"{path} answers the pair {trial} twice; take the file as the page saved it")
                choices[trial] = choice
            case _:
                raise InputError(
                    f"{path} holds the answer {json.dumps(answer)[:80]}, which is none of {', '.join(CHOICES)} for one"
                    f" of {pairs} pairs; take the file as the page saved it"
                )
    return choices


def _read(path: Path, fields: Sequence[str], what: str) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); give {what}") from error
    except ValueError as error:
        raise InputError(f"{path} is no JSON ({error}); give {what}") from error
    missing = [name for name in fields if not isinstance(content, dict) or name not in content]
    if missing:
        raise InputError(f"{path} has no {missing[0]!r}, so it does not hold {what}; give another file")
    return content
