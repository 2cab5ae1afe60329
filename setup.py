"""Puts configs/ into the wheel as jaxcxr/configs; all else is in pyproject.toml."""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

CONFIGS = sorted(Path("configs").rglob("*.py"))


class BuildWithConfigs(build_py):
    """An editable install needs no copy: it finds the configs in the clone."""

    def run(self) -> None:
        """Builds the package, with the configs within it."""
        super().run()
        if not self.editable_mode:
            for file in CONFIGS:
                target = Path(self.build_lib, "jaxcxr", file)
                self.mkpath(str(target.parent))
                self.copy_file(str(file), str(target), preserve_mode=False)

    def get_source_files(self) -> list[str]:
        """What an sdist has: the wheel that is built of it needs the configs too."""
        return [*super().get_source_files(), *map(str, CONFIGS)]


setup(cmdclass={"build_py": BuildWithConfigs})
