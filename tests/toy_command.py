"""The real command with the toy stages in place of its own: `python tests/toy_command.py run RECIPE …`."""

import sys

from meditron.cli import main
from meditron.recipe import load_recipe
from toy_stages import MEET, STAGES

if __name__ == "__main__":
    load_recipe.__kwdefaults__["stages"] = (*STAGES[:2], MEET)
    main(sys.argv[1:])
