import subprocess
import sys
from types import ModuleType

import pytest
from mmengine import DefaultScope
from mmengine import registry as mmengine_registry

from redfree.data.mmseg_lists import class_names, import_mmseg, listed_files
from redfree.errors import UserError


def touch(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def voc(root, lines):
    touch(root, "images/a.jpg", "images/b.jpg", "images/c.jpg", "labels/a.png")
    (root / "list.txt").write_text(lines)
    folders = {"img_path": "images", "seg_map_path": "labels"}
    pairs = listed_files("PascalVOCDataset", data_root=str(root), data_prefix=folders, ann_file="list.txt")
    return [tuple(path.relative_to(root).as_posix() for path in pair) for pair in pairs]


def tree(root, dataset_class, **arguments):
    folders = {"img_path": "images", "seg_map_path": "labels"}
    pairs = listed_files(dataset_class, data_root=str(root), data_prefix=folders, **arguments)
    return [tuple(path.relative_to(root).as_posix() for path in pair) for pair in pairs]


def test_a_list_is_followed_in_its_order(tmp_path):
    assert voc(tmp_path, "c\na\n") == [("images/c.jpg", "labels/c.png"), ("images/a.jpg", "labels/a.png")]


def test_windows_line_ends_and_empty_lines_are_no_samples(tmp_path):
    assert voc(tmp_path, "b\r\n\r\na\n\n") == [("images/b.jpg", "labels/b.png"), ("images/a.jpg", "labels/a.png")]


def test_folders_are_listed_sorted_and_without_stray_files(tmp_path):
    touch(tmp_path, "images/2.jpg", "images/1.jpg", "images/._1.jpg", "images/Thumbs.db", "images/x/.DS_Store")
    assert tree(tmp_path, "ADE20KDataset") == [("images/1.jpg", "labels/1.png"), ("images/2.jpg", "labels/2.png")]


def test_cities_are_listed_in_their_folders_with_the_suffix_asked_for(tmp_path):
    touch(tmp_path, "images/ulm/u_leftImg8bit.png", "images/bonn/b_leftImg8bit.png", "images/bonn/b_rightImg8bit.png")
    listed = tree(tmp_path, "CityscapesDataset", seg_map_suffix="_ids.png")
    assert listed == [
        ("images/bonn/b_leftImg8bit.png", "labels/bonn/b_ids.png"),
        ("images/ulm/u_leftImg8bit.png", "labels/ulm/u_ids.png"),
    ]


@pytest.mark.parametrize(
    ("dataset_class", "number", "some"),
    [
        ("PascalVOCDataset", 21, {0: "background", 1: "aeroplane", 15: "person", 20: "tvmonitor"}),
        ("ADE20KDataset", 150, {0: "wall", 3: "floor", 149: "flag"}),
        ("CityscapesDataset", 19, {0: "road", 10: "sky", 13: "car", 18: "bicycle"}),
    ],
)
def test_class_names(dataset_class, number, some):
    names = class_names(dataset_class)
    assert len(names) == len(set(names)) == number
    assert {index: names[index] for index in some} == some


def test_an_unknown_class_is_refused_with_the_nearest():
    with pytest.raises(
        UserError, match=r"^unknown dataset class of mmseg 'VOCDataset'; did you mean 'PascalVOCDataset'\?$"
    ):
        class_names("VOCDataset")


@pytest.mark.parametrize("package", ["mmcv", "mmseg.datasets"])
def test_a_missing_package_is_one_line_with_the_command_that_installs_it(monkeypatch, package):
    for name in ("mmcv._ext", "mmseg.datasets"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError) as caught:
        class_names("ADE20KDataset")
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"mmseg.datasets cannot be imported (import of {package} halted")
    assert message.endswith("; pip install mmsegmentation==1.2.2 mmcv-lite==2.1.0 ftfy regex")


def test_operators_raise_when_called_and_what_needs_none_works():
    import torch

    import_mmseg("mmseg.datasets")
    from mmcv.ops import nms, point_sample
    from mmcv.utils.ext_loader import check_ops_exist

    with pytest.raises(NotImplementedError, match=r"^nms: mmcv-lite has no compiled operators; install mmcv"):
        nms(torch.zeros(1, 4), torch.ones(1), 0.5)
    assert point_sample(torch.ones(1, 1, 4, 4), torch.full((1, 1, 2), 0.5)).item() == 1
    assert not check_ops_exist()


def test_operators_that_are_there_stay(monkeypatch):
    compiled = ModuleType("mmcv._ext")
    monkeypatch.setitem(sys.modules, "mmcv._ext", compiled)
    import_mmseg("mmseg.registry")
    assert sys.modules["mmcv._ext"] is compiled


def test_the_scope_of_the_user_stays_and_registries_remain_usable(tmp_path):
    touch(tmp_path, "images/1.jpg")
    user = mmengine_registry.Registry("dataset", parent=mmengine_registry.DATASETS, scope="user_of_mmengine")

    @user.register_module()
    class ADE20KDataset:
        pass

    with DefaultScope.overwrite_default_scope("user_of_mmengine"):
        tree(tmp_path, "ADE20KDataset")
        assert DefaultScope.get_current_instance().scope_name == "user_of_mmengine"
        assert type(user.build({"type": "ADE20KDataset"})) is ADE20KDataset
    named = mmengine_registry.DATASETS.get("mmseg.ADE20KDataset")
    assert named is import_mmseg("mmseg.datasets").ADE20KDataset


def test_importing_is_put_off_and_silent():
    code = """
import sys
from mmengine import DefaultScope
from redfree.data.adapters import ade20k, cityscapes, voc2012
assert not [name for name in sys.modules if name.partition(".")[0] in ("mmcv", "mmseg")]
import torch
from redfree.data.mmseg_lists import class_names
sys.stderr.write("imported\\n")
class_names("ADE20KDataset")
assert DefaultScope.get_current_instance() is None
"""
    done = subprocess.run([sys.executable, "-W", "always", "-c", code], check=True, capture_output=True, text=True)
    assert done.stderr.partition("imported\n")[1:] == ("imported\n", "")
    assert done.stdout == ""
