"""Write the golden resolved recipes again: `python tests/recipe/golden.py`. The difference is the review."""

import json
from pathlib import Path

from meditron.recipe import load_recipe

ROOT = Path(__file__).parents[2]

if __name__ == "__main__":
    for recipe in ("quickstart", "smoke"):
        resolved = load_recipe(ROOT / f"recipes/{recipe}.toml").resolved()
        text = json.dumps(resolved, indent=2, ensure_ascii=False) + "\n"
        (Path(__file__).parent / "golden" / f"{recipe}.json").write_text(text, encoding="utf-8")
