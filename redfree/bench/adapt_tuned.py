"""The practitioner's question about tuning: is it worth it on these images, against the swap alone?"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from redfree.bench.adapt import Adaptation, AdaptOptions, adapt_swap, paired_gain, prepare_task, swap_params, write_swap
from redfree.bench.catalogue import TunerParams
from redfree.bench.cell import Measurement, write_measurement
from redfree.channels import ChannelMap
from redfree.errors import unknown
from redfree.tasks.segmentation import Counts
from redfree.tuners.artefact import save_tuner
from redfree.tuners.catalogue import TUNERS, tuner_options
from redfree.tuners.fit_options import FitParams
from redfree.validation import validate


@dataclass(frozen=True)
class TunedAdaptation:
    """What tuning found beside the swap alone, on the same images.

    Attributes:
        alone: the swap without a tuner.
        tuned: the tuner, with the swap on top where that was asked for.
        tuner_counts: raw counts of the tuned model without any swap on the test images, (images, 4).
    """

    alone: Adaptation
    tuned: Measurement
    tuner_counts: Counts

    @property
    def tuned_counts(self) -> Counts:
        """Raw counts of what is handed to the user, (images, 4)."""
        return np.asarray(self.tuned.counts[0])

    @property
    def worth(self) -> tuple[float, tuple[float, float]]:
        """Mean per-image IoU gain of what was tuned over the swap alone, with its paired 95% interval."""
        return paired_gain(self.tuned_counts, self.alone.after)


def adapt_tuned(options: AdaptOptions, cache: Path) -> TunedAdaptation:
    """Fits a tuner to the search images, searches a swap on top if asked to, and measures the swap alone beside it.

    The search images are all that a practitioner has: the tuner is fitted to the images that then choose the swap. The
    test images have no part in either.

    Raises:
        UserError: as `redfree.bench.adapt.adapt`, or there is no such tuner.
    """
    methods = [*TUNERS, *(f"{name}+swap" for name in TUNERS)]
    if options.method not in methods:
        raise unknown("method", options.method, ["swap", *methods])
    tuner = options.method.partition("+")[0]
    chosen = tuner_options(tuner, options.tuner_options).model_dump(mode="json", exclude_unset=True)
    fit = validate(FitParams, dict(options.fit), "--fit")
    params = TunerParams(fit=fit, options=chosen, train_on="search").model_dump(mode="json")
    parts = {"tuner": params, "swap": swap_params(options)}
    task = prepare_task(options, cache)
    alone = adapt_swap(task, cache)
    tuned = task.measure(cache, options.method, parts if "+" in options.method else params)
    identity = ChannelMap(tuned.setup.model.channels)
    return TunedAdaptation(alone, tuned, tuned.setup.test.count(identity))


def write_tuned_adaptation(found: TunedAdaptation, out: Path) -> None:
    """Writes `tuner.safetensors`, the record and its raw counts, `swap.json`, and `swap-alone.json`.

    `swap.json` is for the tuned model and changes nothing where no swap was asked for or the guard refused it;
    `swap-alone.json` is for the model as it was.
    """
    assert found.tuned.tuned is not None
    write_measurement(out / "record.json", found.tuned)
    save_tuner(out / "tuner.safetensors", found.tuned.tuned.attachment, found.tuned.tuned.spec)
    write_swap(found.tuned, out / "swap.json")
    write_swap(found.alone.measurement, out / "swap-alone.json")
