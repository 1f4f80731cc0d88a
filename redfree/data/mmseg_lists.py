"""Samples and classes as the dataset classes of MMSegmentation name them. The one module that imports mmseg.

The import takes about one second where torch is imported already and three where it is not, so nothing is imported
before it is needed.
"""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import NoReturn, Protocol

from redfree.errors import UserError, unknown

_OPERATORS = "mmcv._ext"


def listed_files(dataset_class: str, **arguments: object) -> list[tuple[Path, Path]]:
    """Lists a dataset without reading any image. That the listed files exist is not checked.

    Args:
        dataset_class: class of `mmseg.datasets`, such as "PascalVOCDataset".
        arguments: what the class takes, such as `data_root`, `data_prefix` and `ann_file`; the folders and the list
            that they name must exist.

    Returns:
        Image and label map of each sample, in the order of `ann_file`, or sorted where there is none. Empty lines of
        the list and names that start with a dot, which only file managers leave behind, are no samples.

    Raises:
        UserError: MMSegmentation cannot be imported, or has no such class.
    """
    dataset = _dataset_class(dataset_class)(**arguments, pipeline=[], lazy_init=True)
    pairs = [(Path(listed["img_path"]), Path(listed["seg_map_path"])) for listed in dataset.load_data_list()]
    return [pair for pair in pairs if not pair[0].name.startswith(".")]


def class_names(dataset_class: str) -> tuple[str, ...]:
    """The classes of a dataset, in the order of the labels 0, 1, 2 and so on.

    Args:
        dataset_class: class of `mmseg.datasets`, such as "PascalVOCDataset".

    Raises:
        UserError: MMSegmentation cannot be imported, or has no such class.
    """
    return tuple(_dataset_class(dataset_class).METAINFO["classes"])


def import_mmseg(module: str = "mmseg") -> ModuleType:
    """Imports a module of MMSegmentation on mmcv-lite, which has no compiled operators, or on mmcv where it is there.

    Args:
        module: full name of the module.

    Raises:
        UserError: a package is missing, or of a version that MMSegmentation refuses.
    """
    try:
        _stand_in_for_operators()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module(module)
    except (ImportError, AssertionError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"{module} cannot be imported ({reason}); pip install mmsegmentation==1.2.2 mmcv-lite==2.1.0 ftfy regex"
        ) from error


class _Dataset(Protocol):
    """What is used of a dataset class of mmseg."""

    METAINFO: Mapping[str, Sequence[str]]

    def __init__(self, **arguments: object) -> None: ...

    def load_data_list(self) -> list[dict[str, str]]: ...


def _dataset_class(name: str) -> type[_Dataset]:
    module = import_mmseg("mmseg.datasets")
    if name not in module.__all__:
        raise unknown("dataset class of mmseg", name, module.__all__)
    return getattr(module, name)  # type: ignore[no-any-return]


class _NoOperators(ModuleType):
    """A module in which every name is a function that raises."""

    def __getattr__(self, name: str) -> Callable[..., NoReturn]:
        # Python asks modules for names such as __path__, and takes what it gets for an answer.
        if name.startswith("__"):
            raise AttributeError(name)

        def refuse(*_: object, **__: object) -> NoReturn:
            raise NotImplementedError(f"{name}: mmcv-lite has no compiled operators; install mmcv to use it")

        return refuse


def _stand_in_for_operators() -> None:
    """Registers a stand-in for mmcv's operators where they are absent: mmseg imports them and never calls them here."""
    if _OPERATORS in sys.modules or find_spec(_OPERATORS):
        return
    module = _NoOperators(_OPERATORS)
    # Without a loader `mmcv.utils.check_ops_exist` goes on to say that there are none.
    module.__spec__ = ModuleSpec(_OPERATORS, None)
    sys.modules[_OPERATORS] = module
