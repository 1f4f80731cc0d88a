"""Images, models and evaluators small enough for brute force."""

import numpy as np
import torch
from segment_anything import SamPredictor

from redfree.channels import ChannelMap
from redfree.data.schema import Prompt, Sample
from redfree.models.sam import SamModel
from redfree.search.evaluate import SegmentationEvaluator
from redfree.search.log import SearchLog
from redfree.search.scores import Scores, Screen


def make_sample(seed, height=64, width=64, labels=(1,)):
    """A smooth random image whose mask is an ellipse that holds the first point."""
    rng = np.random.default_rng(seed)
    coarse = torch.from_numpy(rng.random((1, 3, 6, 6)))
    image = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic")[0].clamp(0, 1)
    cx, cy = rng.uniform(0.3, 0.7, 2) * (width, height)
    y, x = np.mgrid[:height, :width]
    mask = ((x - cx) / (0.3 * width)) ** 2 + ((y - cy) / (0.3 * height)) ** 2 <= 1
    others = rng.integers(0, (width, height), (len(labels) - 1, 2))
    points = ((float(int(cx)), float(int(cy))), *((float(a), float(b)) for a, b in others))
    pixels = (image.permute(1, 2, 0) * 255).byte().numpy()
    return Sample(f"tiny-{seed}", pixels, mask, Prompt(points, tuple(labels)))


def make_model(sam, sha="0" * 64):
    return SamModel("tiny", sam, sha)


def make_evaluator(model, samples, folder=None, batch=64, **options):
    features = model.encode([s.image for s in samples])
    return SegmentationEvaluator(model, samples, features, SearchLog(folder), batch, **options)


class Stock:
    """The official predictor on one sample, its features replaced by hand."""

    def __init__(self, sam, sample):
        self.sample, self.predictor = sample, SamPredictor(sam)
        self.predictor.set_image(sample.image)
        self.features = self.predictor.features

    def __call__(self, index=None, input_frame=False):
        """Logits at the image's own size, or at the size that it takes in the input."""
        features = self.features
        if index is not None:
            features = torch.zeros_like(self.features)
            for channel, source in enumerate(index):
                if source >= 0:
                    features[:, channel] = self.features[:, source]
        self.predictor.features = features
        prompt = self.sample.prompt
        logits, _, low = self.predictor.predict(
            np.array(prompt.points), np.array(prompt.labels), multimask_output=False, return_logits=True
        )
        if not input_frame:
            return logits[0]
        size = self.predictor.input_size
        return self.predictor.model.postprocess_masks(torch.from_numpy(low)[None], size, size)[0, 0].numpy()


def iou_of_logits(logits, target):
    """IoU of many predictions of one image; 0 where the union is empty.

    Args:
        logits: (B, H, W), positive on the object.
        target: (H, W) bool.

    Returns:
        (B,) values in 0..1.
    """
    # Whole numbers up to 2**24 are exact in float32, whose products and sums are faster than sums of booleans.
    predicted, truth = (logits > 0).flatten(1), target.flatten()
    exact = predicted.float() if target.numel() <= 2**24 else predicted.double()
    intersection = (exact @ truth.to(exact.dtype)).double()
    union = exact.sum(1).double() + truth.sum() - intersection
    return np.asarray((intersection / union.clamp(min=1)).cpu(), np.float64)


def plain_iou(predicted, target):
    union = np.logical_or(predicted, target).sum()
    return np.logical_and(predicted, target).sum() / union if union else 0.0


class RiggedEvaluator:
    """Scores by a formula of (index vector, image) and keeps what it was asked."""

    def __init__(self, channels, images, value):
        self.channels, self.images, self.value = channels, images, value
        self.asked = []

    def __len__(self):
        return self.images

    def score(self, maps, images=None, label="score"):
        chosen = list(range(self.images)) if images is None else list(images)
        self.asked.append((label, len(maps), tuple(chosen)))
        return Scores(np.array([[self.value(row.tolist(), d) for d in chosen] for row in maps]), 0.25)

    def screen(self, channel_map, images):
        """The exact gain of every move, as a screen would give it if scores were linear."""
        gains, index = np.zeros((self.channels, self.channels)), channel_map.index()
        for i, j in np.ndindex(gains.shape):
            moved = [j if c == i else f for c, f in enumerate(index)]
            gains[i, j] = np.mean([self.value(moved, d) - self.value(index, d) for d in images])
        return Screen(gains, np.zeros_like(gains), np.zeros_like(gains), 3 * len(images), 0.5)


def swap(channels, *pairs):
    return ChannelMap(channels, pairs)
