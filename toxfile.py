"""A tox runner whose environments may share one directory.

tox recreates a directory that another environment name has used. The environments of this project differ only in the
commands they run, so the name is left out of what tox compares; a change of dependencies still recreates it.
"""

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from tox.plugin import impl
from tox.tox_env.info import Info
from tox.tox_env.python.virtual_env.runner import VirtualEnvRunner
from tox.tox_env.register import ToxEnvRegister


class NamelessInfo(Info):
    """What tox knows of a directory, without the name of the environment that asks."""

    @contextmanager
    def compare(
        self, value: Any, section: str, sub_section: str | None = None
    ) -> Generator[tuple[bool, Any | None], None, None]:
        """Compares as `Info.compare`, but for the name."""
        if isinstance(value, dict) and "name" in value:
            value = {**value, "name": "shared"}
        with super().compare(value, section, sub_section) as result:
            yield result


class SharedRunner(VirtualEnvRunner):
    """A virtual environment that several tox environments share."""

    @staticmethod
    def id() -> str:
        """The name by which tox.ini asks for it."""
        return "shared"

    @property
    def cache(self) -> Info:
        """What tox knows of the directory."""
        return NamelessInfo(self.env_dir)


@impl
def tox_register_tox_env(register: ToxEnvRegister) -> None:
    """Makes the runner known to tox."""
    register.add_run_env(SharedRunner)
