"""The model card, a README that is exported together with a trained model."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping

from lungseg_ray.config import Settings
from lungseg_ray.corpus.record import SPLITS, Split
from lungseg_ray.names import OWN_ARCHITECTURES, Fit
from lungseg_ray.run.exported import Sidecar
from lungseg_ray.run.summary import (
    Evaluation,
    ValidationFigures,
    describe_confidence,
    describe_detection,
    describe_robustness,
)
from lungseg_ray.shards.index import ShardIndex, SplitFigures
from lungseg_ray.text import markdown

TEMPLATE = """\
---
library_name: {library}
pipeline_tag: image-segmentation
tags: [medical, chest-x-ray, segmentation]
license: {licence_tag}
---
# {settings.runs.name}: {names} by {settings.model.architecture} with {settings.model.encoder}

```python
{opening}
```

Input: {corpus.channels} channel(s), {fitted} to {size} x {size} px, divided by 255{normalised}.
Output: logits; {reading}.
`preprocessing.json` says the same for a program.

## Data

{origin}. {about}
Licence of the data: {licence}.{mixed}

| split | images | patients |
|---|---|---|
{split_rows}

{patients} Shards: {index.fingerprint:.16}.{start}

## Figures

| split | images | Dice | IoU | HD95 |
|---|---|---|---|---|
{figure_rows}

Means over images; intervals are 95 % bootstrap over patients. Masks of validation images are compared at the size of
the network, without mirror images and clean-up; those of test images as they are predicted, on the decoded image.

## Intended use

Research on segmentation of images like those above. It is no medical device: it must not be used for diagnosis or
treatment, and on images of another kind (age, projection, detector, disease) it must be measured anew first.

## Failure cases

{failure_cases}
"""


def model_card(
    settings: Settings,
    index: ShardIndex,
    sidecar: Sidecar,
    validation: ValidationFigures,
    *,
    test: Evaluation | None,
) -> str:
    """Writes the model card of a run.

    Args:
        settings: The settings of the run.
        index: The index of the shards that the model was trained on.
        sidecar: The sidecar of the model.
        validation: The figures of the best epoch on the validation images.
        test: The content of `evaluation.json` for the test images; None if there are none, or before they are measured.

    Returns:
        The card as Markdown, with a YAML header.
    """
    corpus, own = settings.corpus, settings.model.architecture in OWN_ARCHITECTURES
    return TEMPLATE.format(
        settings=settings,
        corpus=corpus,
        index=index,
        size=settings.feed.size,
        licence_tag=json.dumps(corpus.licence or "other"),
        names=", ".join(map(markdown, corpus.class_names)),
        library="lungseg-ray" if own else "segmentation-models-pytorch",
        opening=_OPENING["own" if own else "smp"],
        fitted=_FITTED[sidecar.fit],
        normalised=", then normalised to mean 0 and standard deviation 1" if sidecar.normalise else "",
        reading=_reading(sidecar),
        origin="synthetic chest phantoms, drawn by lungseg-ray"
        if index.layout == "phantom"
        else markdown(str(corpus.root)),
        about=corpus.about or "The owner of the data has not described it (corpus.about).",
        licence=corpus.licence or "not stated (corpus.licence)",
        mixed="".join(_mixed_in(settings)),
        split_rows="\n".join(_split_rows(index.splits)),
        patients=_describe_patients(index.splits, alone=not settings.corpora),
        start=f" Training started from the weights of {markdown(str(settings.model.start))}."
        if settings.model.start
        else "",
        figure_rows="\n".join(_figure_rows(index.splits["val"].images, validation, test)),
        failure_cases="\n".join(_failure_cases(test)),
    )


_OPENING = {
    "smp": """import segmentation_models_pytorch as smp

model = smp.from_pretrained("path/to/this/folder").eval()""",
    "own": """from pathlib import Path
from lungseg_ray.models import load_export

model = load_export(Path("path/to/this/folder"))""",
}
"""How the model is opened, by the library that its network is from."""
_FITTED: Mapping[Fit, str] = {
    "stretch": "stretched bilinearly",
    "pad": "padded to a square with black borders, resized bilinearly",
}


def _reading(sidecar: Sidecar) -> str:
    reading = f"sigmoid, threshold {sidecar.threshold}" if sidecar.classes == 1 else "softmax, the largest"
    if sidecar.flips != "none":
        reading += f", averaged over mirror images ({sidecar.flips})"
    if sidecar.clean_up:
        reading += "; of each label the two largest components are kept, and their holes filled"
    return reading


def _split_rows(splits: Mapping[Split, SplitFigures]) -> list[str]:
    return [f"| {split} | {splits[split].images} | {splits[split].patients} |" for split in SPLITS]


def _mixed_in(settings: Settings) -> Iterator[str]:
    """Yields a paragraph on each corpus whose training images were mixed in."""
    for one in settings.corpora:
        yield (
            f"\n\nMixed in: {one.share:.0%} of the training images from {one.first:.0%} to {one.until:.0%} of the run "
            f"are from {markdown(str(one.root))} (shards {one.fingerprint:.16}), with its own origin and licence, and "
            "not in the table."
        )


def _describe_patients(splits: Mapping[Split, SplitFigures], *, alone: bool) -> str:
    if all(one.patients == one.images for one in splits.values()):
        return "Each image counts as a patient of its own; where that is wrong, a patient may be in two splits."
    if not alone:
        return "No patient of the table is in two splits; those of corpora that were mixed in were not compared."
    return "No patient is in two splits."


def _figure_rows(images: int, validation: ValidationFigures, test: Evaluation | None) -> list[str]:
    """Returns the row of the validation images, whose number is given, and that of the test images if there are any."""
    rows = [f"| validation | {images} | {validation['dice']:.4f} | {validation['iou']:.4f} | |"]
    if test:
        dice = test["dice"]
        rows.append(
            f"| test | {test['n']} | {dice['mean']:.4f} ({dice['low']:.4f} to {dice['high']:.4f}) "
            f"| {test['iou']['mean']:.4f} | {test['hd95']['mean']:.1f} px |"
        )
    return rows


def _failure_cases(test: Evaluation | None) -> list[str]:
    if not test:
        return ["- No test images: nothing is known of its failures yet."]
    groups = [
        (found["dice"]["mean"], markdown(f"{column} = {value}"), found["n"])
        for column, values in test["groups"].items()
        for value, found in values.items()
    ]
    return [
        *(f"- Lowest subgroup: {name}, Dice {mean:.4f}, {n} images." for mean, name, n in sorted(groups)[:1]),
        f"- On {test['n_empty']} of {test['n']} test images either truth or prediction was empty.",
        *(f"- {markdown(text)}" for text in describe_detection(test)),
        *(f"- {markdown(text)}" for text in (*describe_robustness(test), *describe_confidence(test))),
        "- The worst test images are in the run's `evaluation/test/contact_sheet.png`.",
    ]
