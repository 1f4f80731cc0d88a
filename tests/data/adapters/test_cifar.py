import hashlib
import pickle
import pickletools

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import CIFAR10, CIFAR100
from trees import cifar10, cifar100
from trees.cifar10 import image, label

from redfree.data.about import about_of
from redfree.data.adapters import cifar
from redfree.data.adapters.cifar import Batches, Cifar10, Cifar100
from redfree.data.indexed import IndexedDataset
from redfree.errors import UserError

PUBLISHED = cifar.published_batches


class Evil:
    """Writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.fixture
def root10(tmp_path, monkeypatch):
    cifar10.build(tmp_path)
    monkeypatch.setattr(cifar, "published_batches", lambda _: Batches(*cifar10.md5s(tmp_path)))
    return tmp_path


@pytest.fixture
def root100(tmp_path, monkeypatch):
    cifar100.build(tmp_path)
    monkeypatch.setattr(cifar, "published_batches", lambda _: Batches(*cifar100.md5s(tmp_path)))
    return tmp_path


def message(function, *arguments):
    with pytest.raises(UserError) as caught:
        function(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def by_id(source):
    return {entry.id: entry for entry in source.entries()}


def test_ids_and_splits(root10):
    entries = by_id(Cifar10(root10))
    assert [id_ for id_, entry in entries.items() if entry.split == "train"] == [f"train-{n:05d}" for n in range(15)]
    assert [id_ for id_, entry in entries.items() if entry.split == "test"] == [f"test-{n:05d}" for n in range(4)]
    assert entries["train-00004"].key == ("data_batch_2", 1)
    assert entries["train-00004"].files == ()


def test_counts(root10):
    assert Cifar10(root10).counts() == {"train": 15, "test": 4}


@pytest.mark.parametrize(("id_", "name", "row"), [("train-00014", "data_batch_5", 2), ("test-00003", "test_batch", 3)])
def test_image_and_label(root10, id_, name, row):
    source = Cifar10(root10)
    entry = by_id(source)[id_]
    assert source.image(entry).dtype == np.uint8
    assert np.array_equal(source.image(entry), image(name, row))
    assert source.target(entry) == label(name, row)
    assert type(source.target(entry)) is int


def test_a_reader_that_takes_rows_for_pixels_mixes_the_colours(root10):
    source = Cifar10(root10)
    naive = cifar10.planes("test_batch", 1)[0].reshape(32, 32, 3)
    found = source.image(by_id(source)["test-00000"])
    assert not np.array_equal(found, naive)
    assert np.array_equal(found[..., 0].ravel(), cifar10.planes("test_batch", 1)[0, :1024])


def test_the_tree_is_pickled_as_python_2_did(root10):
    """Read without an encoding such a file fails; its strings are bytes of Python 2."""
    content = (root10 / cifar10.FOLDER / "test_batch").read_bytes()
    names = {argument for opcode, argument, _ in pickletools.genops(content) if opcode.name == "GLOBAL"}
    assert names == {"numpy.core.multiarray _reconstruct", "numpy ndarray", "numpy dtype"}
    with pytest.raises(UnicodeDecodeError):
        pickle.loads(content)


def test_pickled_by_python_3(root10):
    path = root10 / cifar10.FOLDER / "test_batch"
    content = pickle.dumps({"data": cifar10.planes("test_batch", 4), "labels": [3, 2, 1, 0]}, protocol=2)
    assert b"_codecs" in content
    path.write_bytes(content)
    source = Cifar10(root10)
    entry = by_id(source)["test-00002"]
    assert np.array_equal(source.image(entry), image("test_batch", 2))
    assert source.target(entry) == 1


def test_the_folder_itself_is_the_root(root10):
    assert Cifar10(root10 / cifar10.FOLDER).counts() == {"train": 15, "test": 4}


def test_a_batch_is_read_once(root10, monkeypatch):
    source = Cifar10(root10)
    entries = source.entries()
    monkeypatch.setattr(cifar, "_Restricted", lambda *_, **__: pytest.fail("read again"))
    assert len({source.image(entry).tobytes() for entry in entries}) == len(entries)


def test_a_source_that_was_read_from_is_small_when_pickled(root10):
    source = Cifar10(root10)
    source.image(source.entries()[0])
    assert len(pickle.dumps(source)) < 1000


def test_what_is_read_cannot_be_changed_by_the_reader_of_an_image(root10):
    source = Cifar10(root10)
    entry = source.entries()[0]
    source.image(entry)[:] = 0
    assert source.image(entry).any()


def test_entries_decode_nothing(root10, monkeypatch):
    monkeypatch.setattr(Image, "open", lambda *_: pytest.fail("decoded"))
    assert len(Cifar10(root10).entries()) == 19


def test_rows(root10):
    row = IndexedDataset("cifar10", about_of("cifar10"), Cifar10(root10)).load("test", 1, 0)[0]
    number = int(row["id"].removeprefix("test-"))
    assert row["label"] == label("test_batch", number)
    assert np.array_equal(np.asarray(row["image"]), image("test_batch", number))


class TestCifar100:
    @pytest.mark.parametrize(("labels", "classes"), [("fine", 100), ("coarse", 20)])
    def test_labels(self, root100, labels, classes):
        source = Cifar100(root100, Cifar100.Options(labels=labels))
        entries = by_id(source)
        assert [source.target(entries[f"train-{row:05d}"]) for row in range(6)] == [
            label("train", row, classes) for row in range(6)
        ]
        assert np.array_equal(source.image(entries["test-00001"]), image("test", 1))

    def test_a_reader_of_the_wrong_key_has_other_classes(self, root100):
        fine, coarse = (Cifar100(root100, Cifar100.Options(labels=labels)) for labels in ("fine", "coarse"))
        entries = fine.entries()
        assert [fine.target(entry) for entry in entries] != [coarse.target(entry) for entry in entries]
        assert Cifar100(root100).target(entries[0]) == fine.target(entries[0])

    def test_counts(self, root100):
        assert Cifar100(root100).counts() == {"train": 6, "test": 4}
        assert Cifar100(root100 / cifar100.FOLDER).counts() == {"train": 6, "test": 4}


class TestIntegrity:
    def test_the_hashes_are_the_published_ones(self):
        ten, hundred = PUBLISHED("cifar10"), PUBLISHED("cifar100")
        assert (ten.folder, hundred.folder) == ("cifar-10-batches-py", "cifar-100-python")
        assert ten.train["data_batch_1"] == "c99cafc152244af753f735de768cd75f"
        assert list(ten.train) == [name for name, _ in CIFAR10.train_list]
        assert hundred.test == {"test": CIFAR100.test_list[0][1]}

    def test_another_file_is_refused_before_it_is_unpickled(self, tmp_path, monkeypatch):
        cifar10.build(tmp_path)
        path = tmp_path / cifar10.FOLDER / "data_batch_1"
        monkeypatch.setattr(cifar, "_Restricted", lambda *_, **__: pytest.fail("unpickled"))
        found = message(Cifar10(tmp_path).entries)
        md5 = hashlib.md5(path.read_bytes()).hexdigest()
        assert found == (
            f"{path}: its MD5 is {md5}, not c99cafc152244af753f735de768cd75f as published; unpack the archive anew"
        )

    def test_an_evil_pickle_of_the_right_hash_is_refused(self, root10):
        path, mark = root10 / cifar10.FOLDER / "data_batch_1", root10 / "mark"
        path.write_bytes(pickle.dumps({"data": Evil(mark), "labels": []}, protocol=2))
        found = message(Cifar10(root10).entries)
        assert f"{path}: not a pickle of arrays alone (names " in found
        assert found.endswith("open); unpack the archive anew")
        assert not mark.exists()
        pickle.loads(path.read_bytes())
        assert mark.exists()

    @pytest.mark.parametrize(
        "name", ["os.system", "builtins.eval", "builtins.getattr", "numpy.load", "numpy.ndarray.tofile", "codecs.open"]
    )
    def test_only_what_builds_arrays_is_admitted(self, root10, name):
        module, _, attribute = name.partition(".")
        path = root10 / cifar10.FOLDER / "data_batch_1"
        path.write_bytes(b"\x80\x02c" + f"{module}\n{attribute}\n".encode() + b"q\x00.")
        assert f"(names {name})" in message(Cifar10(root10).entries).replace("__builtin__", "builtins")

    def test_truncated(self, root10):
        path = root10 / cifar10.FOLDER / "test_batch"
        path.write_bytes(path.read_bytes()[:500])
        assert f"{path}: not a pickle of arrays alone (" in message(Cifar10(root10).entries)

    def test_missing(self, root10):
        path = root10 / cifar10.FOLDER / "test_batch"
        batches = Batches(*cifar10.md5s(root10))
        path.unlink()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(cifar, "published_batches", lambda _: batches)
            assert message(Cifar10(root10).entries).startswith(f"{path}: is missing, so this is not CIFAR-10")
