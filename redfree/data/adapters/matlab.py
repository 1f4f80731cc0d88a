"""Variables of MATLAB files up to version 7."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.io import loadmat

from redfree.errors import UserError


def read_variable(path: Path, name: str) -> NDArray[Any]:
    """Reads one variable, without its axes of length 1.

    Args:
        path: an existing file of MATLAB 5 to 7; later versions are HDF5 files.
        name: the variable.

    Raises:
        UserError: the file is no such file, or has no such variable.
    """
    try:
        return np.asarray(loadmat(path, squeeze_me=True, variable_names=[name])[name])
    except KeyError:
        raise UserError(f"{path}: has no variable {name}; restore the owner's file") from None
    # What scipy raises on files of other kinds differs by their first bytes.
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{path}: not a readable MATLAB file ({reason}); restore the owner's file") from error
