# SPDX-License-Identifier: Apache-2.0
"""The verdict: whether a translation is nearer to the truth than what needs no model.

Where it is not, that is said in words, wherever its scores are shown.
"""

from collections.abc import Mapping

from contourdiff_jax.evaluation.metrics import catalogue

JUDGED = ("ssim_mask", "psnr_mask")  # by which a translation should be better than any baseline
_TABLE = "one table of greys for all subjects, without any training, comes as near to the truth"
MEANING = {  # of a baseline that is not beaten
    "source": "the source as it is comes as near to the truth",
    "histogram": _TABLE,
    "curve": _TABLE,
    "mean": "an image that knows nothing of the subject but its extent comes as near to the truth",
}


def unbeaten(methods: Mapping[str, Mapping[str, Mapping]]) -> list[str]:
    """The baselines that are no worse than the translation, a sentence each.

    Args:
      methods: {method: {metric: {"value"}}}, as in metrics.json.
    """
    ours, sentences = methods.get("translation", {}), []
    for name, meaning in MEANING.items():
        theirs = methods.get(name, {})
        lost = [
            f"{catalogue.title(metric)} {theirs[metric]['value']:.3g} against "
            f"{ours[metric]['value']:.3g}"
            for metric in JUDGED
            if metric in ours and metric in theirs
            if theirs[metric]["value"] >= ours[metric]["value"]
        ]
        if lost:
            sentences.append(f"{name} is not beaten, {', '.join(lost)}: {meaning}.")
    return sentences
