"""The model card, a README that is exported together with a trained model."""

from __future__ import annotations

import json

from lungseg_ray.config import Settings
from lungseg_ray.run.summary import Evaluation, ValidationFigures, describe_detection
from lungseg_ray.shards.format import ShardIndex


def model_card(settings: Settings, index: ShardIndex, validation: ValidationFigures, *, test: Evaluation | None) -> str:
    """Writes the model card of a run.

    Args:
        settings: The settings of the run.
        index: The index of the shards that the model was trained on.
        validation: The figures of the best epoch on the validation images.
        test: The content of `evaluation.json` for the test images; None if there are none, or before they are measured.

    Returns:
        The card as Markdown, with a YAML header.
    """
    corpus, splits = settings.corpus, index.splits
    names = ", ".join(corpus.class_names)
    figures = [f"| validation | {splits['val'].images} | {validation['dice']:.4f} | {validation['iou']:.4f} | |"]
    weak = "- No test images: nothing is known of its failures yet."
    if test:
        dice = test["dice"]
        figures.append(
            f"| test | {test['n']} | {dice['mean']:.4f} ({dice['low']:.4f} to {dice['high']:.4f}) "
            f"| {test['iou']['mean']:.4f} | {test['hd95']['mean']:.1f} px |"
        )
        groups = [
            (found["dice"]["mean"], f"{column} = {value}", found["n"])
            for column, values in test["groups"].items()
            for value, found in values.items()
        ]
        lowest = [f"- Lowest subgroup: {name}, Dice {mean:.4f}, {n} images." for mean, name, n in sorted(groups)[:1]]
        empty = f"- On {test['n_empty']} of {test['n']} test images either truth or prediction was empty."
        weak = "\n".join(
            [
                *lowest,
                empty,
                *(f"- {text}" for text in describe_detection(test)),
                "- The worst test images are in the run's `evaluation/test/contact_sheet.png`.",
            ]
        )
    size, threshold = settings.feed.size, settings.evaluate.first_threshold
    patients = "No patient is in two splits."
    if all(one.patients == one.images for one in splits.values()):
        patients = "Each image counts as a patient of its own; where that is wrong, a patient may be in two splits."
    reading = f"sigmoid, threshold {threshold}" if corpus.classes == 1 else "softmax, the largest"
    start = f" Training started from the weights of {settings.model.start}." if settings.model.start else ""
    origin = "synthetic chest phantoms, drawn by lungseg-ray" if index.layout == "phantom" else f"{corpus.root}"
    return f"""---
library_name: segmentation-models-pytorch
pipeline_tag: image-segmentation
tags: [medical, chest-x-ray, segmentation]
license: {json.dumps(corpus.licence or "other")}
---
# {settings.runs.name}: {names} by {settings.model.architecture} with {settings.model.encoder}

```python
import segmentation_models_pytorch as smp

model = smp.from_pretrained("path/to/this/folder").eval()
```

Input: {corpus.channels} channel(s), stretched bilinearly to {size} x {size} px, divided by 255.
Output: logits; {reading}.
`preprocessing.json` says the same for a program.

## Data

{origin}. {corpus.about or "The owner of the data has not described it (corpus.about)."}
Licence of the data: {corpus.licence or "not stated (corpus.licence)"}.

| split | images | patients |
|---|---|---|
| train | {splits["train"].images} | {splits["train"].patients} |
| val | {splits["val"].images} | {splits["val"].patients} |
| test | {splits["test"].images} | {splits["test"].patients} |

{patients} Shards: {index.fingerprint[:16]}.{start}

## Figures

| split | images | Dice | IoU | HD95 |
|---|---|---|---|---|
{chr(10).join(figures)}

Means over images; intervals are 95 % bootstrap over patients.

## Intended use

Research on segmentation of images like those above. It is no medical device: it must not be used for diagnosis or
treatment, and on images of another kind (age, projection, detector, disease) it must be measured anew first.

## Failure cases

{weak}
"""
