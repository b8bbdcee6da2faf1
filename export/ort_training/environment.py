"""The environment that onnxruntime-training needs for itself: its wheel takes the place of onnxruntime's."""

from __future__ import annotations

import pathlib
import platform
import sys

from export.cache import cache_folder, environment
from export.errors import ExportError

NAME, VERSION = "ort-training", "1.19.2"  # the last release
# onnx 1.17 writes IR version 10 at most, the newest that 1.19.2 reads.
REQUIREMENTS = (f"onnxruntime-training-cpu=={VERSION}", "onnx==1.17.0")
NEWEST_PYTHON = (3, 12)


def python_of() -> pathlib.Path:
    """The Python of that environment, made in the user's cache folder if it is not there.

    Raises ExportError where there is no wheel for this Python or machine, and when pip fails.
    """
    if why := why_not(sys.version_info[:2], platform.system(), platform.machine()):
        raise ExportError(why)
    return environment(cache_folder() / "venvs", NAME, REQUIREMENTS)


def why_not(python: tuple[int, int], system: str, machine: str) -> str:
    """Why no wheel of it can be installed, in one line; empty where one can."""
    if python > NEWEST_PYTHON:
        newest, ours = (".".join(map(str, version)) for version in (NEWEST_PYTHON, python))
        return f"onnxruntime-training {VERSION} has wheels up to Python {newest}, this is {ours}: run an older one"
    if system == "Linux" and machine != "x86_64":
        return f"onnxruntime-training {VERSION} has no wheel for Linux on {machine}: export on an x86-64 machine"
    return ""
