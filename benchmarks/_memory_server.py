"""llama.cpp's child process as the engine starts it, with the weights read into memory instead of mapped.

The engine runs this file in place of `meditron.engine.llamacpp_server`, whose path is in the environment; it
imports nothing else, so that the process has the memory of the engine's own.
"""

import os
import runpy
from typing import Any

import xllamacpp

SCRIPT = "MEDITRON_BENCHMARK_SERVER"
"""Environment variable with the path of the engine's script."""


def main() -> None:
    """Run the engine's script with another load mode."""
    make = xllamacpp.CommonParams

    def without_mmap() -> Any:
        parameters = make()
        parameters.load_mode = xllamacpp.llama_load_mode.LLAMA_LOAD_MODE_NONE
        return parameters

    xllamacpp.CommonParams = without_mmap
    runpy.run_path(os.environ[SCRIPT], run_name="__main__")


if __name__ == "__main__":
    main()
