"""What every search must satisfy, whatever it searches."""

import numpy as np
from tinyworld import RiggedEvaluator, make_evaluator

from redfree.search.scores import index_matrix


class Spy(RiggedEvaluator):
    """A rigged evaluator that also lists screens, and keeps every map that was scored."""

    def __init__(self, channels, images, value):
        super().__init__(channels, images, value)
        self.maps, self.screened = [], []

    def score(self, maps, images=None, label="score"):
        self.maps += [(tuple(row.tolist()), self._chosen(images)) for row in maps]
        return super().score(maps, images, label)

    def screen(self, channel_map, images):
        self.screened.append(channel_map)
        self.asked.append(("screen", 0, tuple(images)))
        return super().screen(channel_map, images)

    def mean(self, index, images):
        return float(np.mean([self.value(list(index), d) for d in images]))

    def _chosen(self, images):
        return tuple(range(self.images) if images is None else images)


class NoScreen(Spy):
    def screen(self, channel_map, images):
        raise AssertionError("a gradient was asked for")


class Blind:
    """A model that cannot decode maps."""

    def __init__(self, model):
        self._model = model

    def __getattr__(self, name):
        if name in ("swap_decoder", "map_decoder", "decode_maps"):
            raise AssertionError(f"{name} was asked for")
        return getattr(self._model, name)


def planted(channels, pairs, noise=0.0, seed=0, slope=-0.01):
    """Scores in which each of some pairs adds to the rest, every other one costs, and images differ."""
    rng = np.random.default_rng(seed)
    gains = slope * (1 + rng.random((channels, channels)))
    for (i, j), gain in pairs.items():
        gains[i, j] = gain
    np.fill_diagonal(gains, 0)
    jitter = noise * rng.uniform(-1, 1, (1000, channels, channels))

    def value(index, d):
        changed = [(i, j) for i, j in enumerate(index) if i != j]
        return 0.5 + 0.001 * d + sum(gains[pair] + jitter[d][pair] for pair in changed)

    return value


def steps(found):
    """Everything that a search reports but for seconds."""
    trace = [(s.stage, s.evaluations, s.decoder_passes, s.best_score) for s in found.trace]
    return found.channel_map, found.top, found.search_score, found.baseline_score, found.best_single_score, trace


def checked(search, spy, images):
    """Runs a search twice on some images and checks its result against what the evaluator was asked."""
    found, asked, scored = search(spy, images), list(spy.asked), list(spy.maps)
    assert steps(search(spy, images)) == steps(found), "two runs differ"
    assert {d for _, _, chosen in asked for d in chosen} <= set(images)
    passes = [count * len(chosen) if label != "screen" else 3 * len(chosen) for label, count, chosen in asked]
    assert [s.decoder_passes for s in found.trace] == passes
    assert [s.evaluations for s in found.trace] == [count for _, count, _ in asked]
    assert [s.stage for s in found.trace] == [label for label, _, _ in asked]
    assert all(s.seconds > 0 for s in found.trace)
    everywhere = [index for index, chosen in scored if sorted(chosen) == sorted(images)]
    assert len(set(everywhere)) == len(everywhere), "a map was scored twice"
    means = {index: spy.mean(index, images) for index in everywhere}
    index = tuple(found.channel_map.index())
    assert abs(found.search_score - means[index]) < 1e-12
    assert abs(found.search_score - max(means.values())) < 1e-12, "something better was scored and not chosen"
    assert abs(found.baseline_score - spy.mean(range(spy.channels), images)) < 1e-12
    singles = [score for i, score in means.items() if sum(c != f for c, f in enumerate(i)) == 1]
    assert abs(found.best_single_score - max(singles, default=found.baseline_score)) < 1e-12
    return found


def check_on_a_model(search, model, samples, folder):
    """Runs a search on a real model, against its own scores, and again from its log without decoding a map.

    Returns what it found and the decoder passes of the evaluator's ledger.
    """
    images = [3, 0, 2]
    evaluator = make_evaluator(model, samples, folder)
    found = search(evaluator, images)
    passes = evaluator.ledger.passes
    own = evaluator.score(index_matrix([found.channel_map]), images).values.mean()
    assert abs(found.search_score - own) < 1e-12
    assert found.search_score > found.baseline_score, "a random model can be improved"
    assert len(found.top) == search.n_pairs
    before = sorted(path.name for path in folder.rglob("*.npz"))
    again = search(make_evaluator(Blind(model), samples, folder), images)
    assert steps(again) == steps(found)
    assert sorted(path.name for path in folder.rglob("*.npz")) == before
    unlogged = search(make_evaluator(model, samples), images)
    assert steps(unlogged) == steps(found)
    return found, passes
