import errno
import json
import threading
from dataclasses import replace
from io import BytesIO

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tinyworld import make_sample

from redfree import files
from redfree.channels import ChannelMap
from redfree.errors import UserError
from redfree.models import feature_cache
from redfree.models.base import Features, Frame
from redfree.models.catalogue import Sam2NanoArchitecture
from redfree.models.feature_cache import FeatureCache, clear, size
from redfree.models.promptable import Encoding
from redfree.models.sam import SamModel
from redfree.models.sam2 import Sam2Model
from redfree.models.sam2_nano import build_sam2_nano

SIZES = [(64, 64), (17, 23), (90, 40), (33, 120), (64, 64)]
SMALL_SAM2 = Sam2NanoArchitecture(
    image_size=64,
    channels=16,
    embed_dim=8,
    stages=(1, 1, 2, 1),
    windows=(4, 2, 2, 2),
    global_blocks=(3,),
    background=2,
)


class Killed(BaseException):
    pass


class CountingSam(SamModel):
    """A SAM that keeps the number of images of each batch that it encodes, and dies before a given batch."""

    def __init__(self, *arguments, dies_at=None):
        super().__init__(*arguments)
        self.batches, self.dies_at = [], dies_at

    def _encode_batch(self, images):
        if len(self.batches) == self.dies_at:
            raise Killed
        self.batches.append(len(images))
        return super()._encode_batch(images)


class PlainModel:
    """The least that a custom model may be: features are the image's mean colour."""

    checkpoint_sha256 = "c" * 64

    def __init__(self, value=1.0, batch=2, **options):
        self.value, self.batch, self.given = value, batch, options

    def options(self):
        return self.given

    def encode_each(self, images):
        assert len(images), "a custom model need not accept no images at all"
        for start in range(0, len(images), self.batch):
            group = images[start : start + self.batch]
            maps = torch.stack([torch.from_numpy(image.mean((0, 1)))[:, None, None] for image in group])
            yield Features(self.value * maps, tuple(Frame(image.shape[:2], image.shape[:2]) for image in group))


class OtherModel(PlainModel):
    """The same weights in another class."""


def make_sam(sam, sha="0" * 64, encoding=None, dies_at=None):
    return CountingSam("tiny", sam, sha, encoding or Encoding(batch=2), dies_at=dies_at)


@pytest.fixture(scope="module")
def images():
    return [make_sample(seed, *sides).image for seed, sides in enumerate(SIZES)]


@pytest.fixture(scope="module")
def sam2():
    torch.manual_seed(0)
    module = build_sam2_nano(SMALL_SAM2)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return module


@pytest.fixture(params=["sam", "sam2"])
def model(request, tiny_sam):
    if request.param == "sam":
        return SamModel("tiny", tiny_sam, "0" * 64)
    return Sam2Model("tiny2", request.getfixturevalue("sam2"), "2" * 64)


def levels_of(features):
    return (features.maps, *features.high_resolution)


def assert_same(found, expected):
    assert found.frames == expected.frames
    for ours, theirs in zip(levels_of(found), levels_of(expected), strict=True):
        assert ours.dtype is torch.float32
        assert torch.equal(ours, theirs)


def assert_close(found, expected, atol=1e-5):
    assert found.frames == expected.frames
    for ours, theirs in zip(levels_of(found), levels_of(expected), strict=True):
        torch.testing.assert_close(ours, theirs, atol=atol, rtol=1e-5)


def counts(encoding):
    return encoding.computed, encoding.read


def kept(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def one_file(folder):
    (path,) = kept(folder)
    return path


def test_features_come_back_bit_for_bit(model, images, tmp_path):
    cache, expected = FeatureCache(tmp_path), model.encode(images)
    first, second = cache.encode(model, images), cache.encode(model, images)
    assert (counts(first), counts(second)) == ((5, 0), (0, 5))
    for encoding in (first, second):
        assert_same(encoding.features, expected)
        assert not encoding.features.maps.is_inference(), "a gradient may be taken later"
    assert len(expected.high_resolution) == (2 if isinstance(model, Sam2Model) else 0)
    assert expected.maps.std() > 1e-3, "the comparison must not be of constants"


def test_features_read_decode_as_encoded_ones(model, tmp_path):
    samples = [make_sample(seed, 50, 70) for seed in range(2)]
    images, prompts = [s.image for s in samples], [s.prompt for s in samples]
    encoded, read, unkept = (FeatureCache(folder).encode(model, images) for folder in (tmp_path, tmp_path, None))
    assert (counts(encoded), counts(read), counts(unkept)) == ((2, 0), (0, 2), (2, 0))
    expected = model.decode(encoded.features, prompts)
    for features in (read.features, unkept.features):
        for ours, theirs in zip(model.decode(features, prompts), expected, strict=True):
            assert torch.equal(ours, theirs)
    # SAM 2 itself leaves channels last in memory, which other kernels take.
    for ours, theirs in zip(model.decode(model.encode(images), prompts), expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_half_precision_rounds_once_and_halves_the_files(model, images, tmp_path):
    cache, exact = FeatureCache(tmp_path / "half", "float16"), model.encode(images)
    first, second = cache.encode(model, images), cache.encode(model, images)
    assert (counts(first), counts(second)) == ((5, 0), (0, 5))
    rounded = Features(exact.maps.half().float(), exact.frames, tuple(h.half().float() for h in exact.high_resolution))
    for encoding in (first, second, FeatureCache(None, "float16").encode(model, images)):
        assert_same(encoding.features, rounded)
    torch.testing.assert_close(first.features.maps, exact.maps, rtol=2**-11, atol=2**-24)
    assert not torch.equal(first.features.maps, exact.maps)
    FeatureCache(tmp_path / "full").encode(model, images)
    headers = 5 * 1024
    assert size(tmp_path / "half")[1] < size(tmp_path / "full")[1] / 2 + headers


@pytest.mark.parametrize("sign", [1, -1])
def test_a_value_beyond_half_precision_is_refused(images, tmp_path, sign):
    model = PlainModel(value=sign * 1e4)
    with pytest.raises(UserError, match="beyond float16; keep features in float32"):
        FeatureCache(tmp_path, "float16").encode(model, images)
    assert kept(tmp_path) == []
    assert FeatureCache(tmp_path).encode(model, images).features.maps.abs().max() > 65504


def test_infinities_of_the_model_itself_stay(images):
    features = FeatureCache(None, "float16").encode(PlainModel(value=float("inf")), images).features
    assert features.maps.isposinf().all()


def test_nothing_is_encoded_twice(tiny_sam, images, tmp_path):
    cache, model = FeatureCache(tmp_path), make_sam(tiny_sam)
    assert counts(cache.encode(model, images[:2])) == (2, 0)
    partly = cache.encode(model, [images[3], images[1], images[4], images[0], images[2]])
    assert counts(partly) == (3, 2)
    assert model.batches == [2, 2, 1], "the missing images are encoded in the model's own batches"
    assert_close(partly.features, model.encode([images[d] for d in (3, 1, 4, 0, 2)]))


def test_duplicates_are_encoded_once(tiny_sam, images, tmp_path):
    model, listed = make_sam(tiny_sam), [images[k] for k in (0, 1, 0, 0, 1)]
    for folder in (None, tmp_path):
        model.batches.clear()
        found = FeatureCache(folder).encode(model, [image.copy() for image in listed])
        assert (model.batches, counts(found)) == ([2], (2, 0))
        assert_close(found.features, model.encode(listed))
    assert counts(FeatureCache(tmp_path).encode(model, listed)) == (0, 2)


def test_no_folder_keeps_nothing(tiny_sam, images, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert [counts(FeatureCache().encode(make_sam(tiny_sam), images)) for _ in range(2)] == [(5, 0)] * 2
    assert kept(tmp_path) == []


def test_no_images_are_a_mistake(tiny_sam):
    with pytest.raises(ValueError, match="no images"):
        FeatureCache().encode(make_sam(tiny_sam), [])


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.lists(st.integers(0, 4), min_size=1, max_size=7), min_size=1, max_size=4), st.integers(1, 3))
def test_whatever_is_kept_the_encoding_is_the_models(tiny_sam, images, tmp_path_factory, asked, batch):
    cache = FeatureCache(tmp_path_factory.mktemp("cache"))
    model, known = make_sam(tiny_sam, encoding=Encoding(batch=batch)), set()
    for chosen in asked:
        found = cache.encode(model, [images[d] for d in chosen])
        assert counts(found) == (len(set(chosen) - known), len(set(chosen) & known))
        same = assert_same if batch == 1 else assert_close
        same(found.features, model.encode([images[d] for d in chosen]))
        known.update(chosen)


def computed(folder, model, image, dtype="float32"):
    return FeatureCache(folder, dtype).encode(model, [image]).computed


def test_every_part_of_the_key_matters(tiny_sam, sam2, images, tmp_path, monkeypatch):
    image = images[1]
    sam, two = SamModel("tiny", tiny_sam, "0" * 64), Sam2Model("tiny", sam2, "0" * 64)
    changed = image.copy()
    changed[16, 22, 2] ^= 1
    questions = [
        (sam, image),
        (SamModel("tiny", tiny_sam, "1" * 64), image),
        (SamModel("other", tiny_sam, "0" * 64), image),
        (SamModel("tiny", tiny_sam, "0" * 64, Encoding(precision="bfloat16")), image),
        (SamModel("tiny", tiny_sam, "0" * 64, Encoding(attention="official")), image),
        (two, image),
        (Sam2Model("tiny", sam2, "0" * 64, swap_at="before_no_mem_embed"), image),
        (PlainModel(), image),
        (OtherModel(), image),
        (PlainModel(layer=3), image),
        (sam, changed),
        (sam, np.ascontiguousarray(image.transpose(1, 0, 2))),
        (sam, image.reshape(image.shape[1], image.shape[0], 3)),
        (sam, image, "float16"),
    ]
    assert [computed(tmp_path, *question) for question in questions] == [1] * len(questions)
    assert [computed(tmp_path, *question) for question in questions] == [0] * len(questions)
    assert len(kept(tmp_path)) == len(questions)
    for name, value in [("_FORMAT", 10**6), ("_versions", lambda: ("new",)), ("_arithmetic", lambda: ("tf32",))]:
        with monkeypatch.context() as patched:
            patched.setattr(feature_cache, name, value)
            assert [computed(tmp_path, sam, image) for _ in range(2)] == [1, 0]
    monkeypatch.setattr(sam, "input_side", 128)
    assert FeatureCache(tmp_path)._context(sam) != FeatureCache(tmp_path)._context(SamModel("tiny", tiny_sam, "0" * 64))


def test_the_device_and_the_formats_of_products_are_in_the_key():
    cache, model = FeatureCache(), PlainModel()
    contexts = {cache._context(model)}
    model.device = torch.device("cuda:0")
    contexts.add(cache._context(model))
    model.device = "cuda:1"
    contexts.add(cache._context(model))
    assert len(contexts) == 2, "the kind of device matters, its number does not"
    products = torch.backends.mkldnn.matmul
    before = products.fp32_precision
    products.fp32_precision = "bf16"  # a property that monkeypatch cannot restore
    try:
        contexts.add(cache._context(model))
    finally:
        products.fp32_precision = before
    assert len(contexts) == 3


def test_what_changes_no_feature_is_not_in_the_key(tiny_sam, images, tmp_path):
    image = images[2]
    assert computed(tmp_path, make_sam(tiny_sam, encoding=Encoding(batch=1)), image) == 1
    assert computed(tmp_path, make_sam(tiny_sam, encoding=Encoding(batch=8)), image) == 0
    padded = np.pad(image, ((0, 0), (0, 5), (0, 0)))[:, :-5]
    assert not padded.flags.c_contiguous
    assert computed(tmp_path, make_sam(tiny_sam), padded) == 0
    assert computed(tmp_path, make_sam(tiny_sam), np.asfortranarray(image)) == 0
    assert computed(tmp_path, PlainModel(first=1, second=2), image) == 1
    assert computed(tmp_path, PlainModel(second=2, first=1), image) == 0


def rewrite(path, change=lambda tensor: tensor, **about):
    """Writes the file with other tensors or metadata under the old seal, as no run would leave it."""
    with safe_open(path, framework="pt") as file:
        known = json.loads(file.metadata()["redfree"])
    tensors = {name: change(tensor).contiguous() for name, tensor in load_file(path).items()}
    save_file(tensors, path, {"redfree": json.dumps({**known, **about})})


def swap_for_other_file(path):
    other = FeatureCache(path.parents[2] / "other")
    other.encode(PlainModel(), [np.zeros((3, 3, 3), np.uint8)])
    path.write_bytes(one_file(other.folder).read_bytes())


def change_byte(path, place):
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


DAMAGE = {
    "empty": lambda path: path.write_bytes(b""),
    "cut in the header": lambda path: path.write_bytes(path.read_bytes()[:30]),
    "cut in the tensors": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"\0"),
    "garbage": lambda path: path.write_bytes(np.random.default_rng(0).bytes(5000)),
    "zeros": lambda path: path.write_bytes(b"\0" * path.stat().st_size),
    "zeros at the end": lambda path: path.write_bytes(path.read_bytes()[:-64] + b"\0" * 64),
    "one bit": lambda path: change_byte(path, -7),
    "file of another key": swap_for_other_file,
    "key of another file": lambda path: rewrite(path, key="0" * 64),
    "no metadata": lambda path: save_file(load_file(path), path),
    "another frame": lambda path: rewrite(path, frame="[[64, 64], [64, 32]]"),
    "no frame": lambda path: rewrite(path, frame="{"),
    "fewer levels": lambda path: rewrite(path, levels=[]),
    "unknown levels": lambda path: rewrite(path, levels=["maps", "more"]),
    "another shape": lambda path: rewrite(path, lambda tensor: tensor.transpose(0, 1)),
    "half precision": lambda path: rewrite(path, torch.Tensor.half),
    "another format": lambda path: rewrite(path, torch.Tensor.bfloat16),
    "metadata of another kind": lambda path: save_file(load_file(path), path, {"redfree": "[1]"}),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_or_foreign_file_is_computed_anew(tmp_path, damage):
    cache, model = FeatureCache(tmp_path / "cache"), PlainModel()
    image = make_sample(0, 20, 30).image
    expected = cache.encode(model, [image]).features
    whole = one_file(cache.folder).read_bytes()
    damage(one_file(cache.folder))
    assert one_file(cache.folder).read_bytes() != whole
    mended = cache.encode(model, [image])
    assert counts(mended) == (1, 0)
    assert_same(mended.features, expected)
    assert one_file(cache.folder).read_bytes() == whole
    assert counts(cache.encode(model, [image])) == (0, 1)


def test_no_damaged_byte_is_ever_believed(tmp_path):
    cache, model = FeatureCache(tmp_path), PlainModel()
    image = make_sample(0, 20, 30).image
    expected = cache.encode(model, [image]).features
    path = one_file(tmp_path)
    whole = path.read_bytes()
    for place in range(0, len(whole), 5):
        change_byte(path, place)
        assert_same(cache.encode(model, [image]).features, expected)
        path.write_bytes(whole)


def test_writers_at_once_agree_and_leave_no_litter(tiny_sam, images, tmp_path):
    expected, found, start = make_sam(tiny_sam).encode(images), [], threading.Barrier(8)

    def work():
        model = make_sam(tiny_sam)
        start.wait()
        found.append(FeatureCache(tmp_path).encode(model, images).features)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(found) == 8
    for features in found:
        assert_close(features, expected)
    assert [path.suffix for path in kept(tmp_path)] == [".safetensors"] * len(images)
    assert counts(FeatureCache(tmp_path).encode(make_sam(tiny_sam), images)) == (0, len(images))


def test_a_killed_run_goes_on_where_it_was(tiny_sam, images, tmp_path):
    cache, killed, resumed = FeatureCache(tmp_path), make_sam(tiny_sam, dies_at=1), make_sam(tiny_sam)
    with pytest.raises(Killed):
        cache.encode(killed, images)
    assert len(kept(tmp_path)) == 2
    found = cache.encode(resumed, images)
    assert (resumed.batches, counts(found)) == ([2, 1], (3, 2))
    assert_close(found.features, resumed.encode(images))


def test_a_full_disk_names_the_file_and_leaves_nothing_half_written(tiny_sam, images, tmp_path, monkeypatch):
    class Full(BytesIO):
        def write(self, data):
            raise OSError(errno.ENOSPC, "No space left on device")

    def open_full(descriptor, mode):
        files.os.close(descriptor)
        return Full()

    cache, model = FeatureCache(tmp_path), make_sam(tiny_sam)
    with monkeypatch.context() as patched:
        patched.setattr(files.os, "fdopen", open_full)
        with pytest.raises(OSError, match="No space left on device") as caught:
            cache.encode(model, images)
    assert caught.value.filename.endswith(".safetensors")
    assert caught.value.filename.startswith(str(tmp_path))
    assert kept(tmp_path) == []
    assert counts(cache.encode(model, images)) == (5, 0)


def test_a_folder_that_cannot_be_made_is_an_error(images, tmp_path):
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(OSError, match="cache"):
        FeatureCache(tmp_path / "cache").encode(PlainModel(), images)


def test_a_swap_on_the_encoder_is_refused(tiny_sam, images, tmp_path):
    model = SamModel("tiny", tiny_sam, "0" * 64)
    with ChannelMap(16, ((0, 1),)).attach(tiny_sam), pytest.raises(UserError, match="detach it before encoding"):
        FeatureCache(tmp_path).encode(model, images)
    assert kept(tmp_path) == []
    assert FeatureCache(tmp_path).encode(model, images).computed == 5


class WrongModel(PlainModel):
    def __init__(self, change):
        super().__init__()
        self.change = change

    def encode_each(self, images):
        return self.change(list(super().encode_each(images)))


@pytest.mark.parametrize(
    "change",
    [
        lambda parts: parts[:-1],
        lambda parts: [*parts, parts[0]],
        lambda parts: [replace(parts[0], frames=parts[0].frames[:1]), *parts[1:]],
        lambda parts: [*parts[:-1], parts[-1].with_maps(parts[-1].maps[:, :1])],
        lambda parts: [*parts[:-1], replace(parts[-1], high_resolution=(parts[-1].maps,))],
    ],
    ids=["too few", "too many", "too few frames", "another shape", "another level"],
)
def test_a_custom_model_that_breaks_its_word_is_an_error(images, change):
    with pytest.raises(ValueError, match=r"zip\(\)|unequal shapes"):
        FeatureCache().encode(WrongModel(change), images)


def test_a_custom_model_may_keep_gradients_and_other_formats(images, tmp_path):
    class Trained(PlainModel):
        def encode_each(self, images):
            for part in super().encode_each(images):
                yield part.with_maps(part.maps.double().requires_grad_())

    for _ in range(2):
        found = FeatureCache(tmp_path).encode(Trained(), images).features
        assert (found.maps.dtype, found.maps.requires_grad) == (torch.float32, False)
    means = torch.tensor(np.array([image.mean((0, 1)) for image in images]), dtype=torch.float32)
    assert torch.equal(found.maps[..., 0, 0], means)


def test_the_bar_counts_distinct_images(images, tmp_path, monkeypatch):
    seen = []

    def track(items, total, description):
        seen.append((description, total))
        for count, item in enumerate(items, 1):
            seen.append(count)
            yield item

    monkeypatch.setattr(feature_cache, "track", track)
    FeatureCache(tmp_path).encode(PlainModel(), images[:2])
    seen.clear()
    FeatureCache(tmp_path).encode(PlainModel(), [*images, images[0]], "encode test images")
    assert seen == [("encode test images", 5), 1, 2, 3, 4, 5]


def test_size_and_clear_see_the_files_of_the_cache_alone(images, tmp_path):
    cache = FeatureCache(tmp_path)
    cache.encode(PlainModel(), images)
    ours, digest = kept(tmp_path), "ab" + "0" * 62
    foreign = [
        tmp_path / f"{digest}.safetensors",
        tmp_path / "ab" / f"{digest}.npz",
        tmp_path / "ab" / f"{digest[:-1]}.safetensors",
        tmp_path / "ab" / f"{digest.upper()}.safetensors",
        tmp_path / "ab" / "model.safetensors",
        tmp_path / "cd" / f"{digest}.safetensors",
        tmp_path / "weights" / f"{digest}.safetensors",
        tmp_path / "x" / "ab" / f"{digest}.safetensors",
    ]
    for path in foreign:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("another's")
    assert size(tmp_path) == (5, sum(path.stat().st_size for path in ours))
    clear(tmp_path)
    assert (size(tmp_path), kept(tmp_path)) == ((0, 0), sorted(foreign))
    assert counts(cache.encode(PlainModel(), images)) == (5, 0)


def test_a_folder_that_is_not_there_is_empty(tmp_path):
    assert size(tmp_path / "none") == (0, 0)
    clear(tmp_path / "none")
    assert not (tmp_path / "none").exists()
