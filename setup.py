"""The one step that pyproject.toml cannot express: the wheel holds `configs/` as `backbench/configs`."""

from __future__ import annotations

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

_CONFIGS = Path(__file__).resolve().parent / "configs"


class BuildWithConfigs(build_py):
    """Copy the configurations into the package; an editable install reads those of the checkout."""

    def run(self) -> None:
        """Build as always, then add the configurations."""
        super().run()
        if not self.editable_mode:
            shutil.copytree(_CONFIGS, Path(self.build_lib) / "backbench" / "configs", dirs_exist_ok=True)


setup(cmdclass={"build_py": BuildWithConfigs})
