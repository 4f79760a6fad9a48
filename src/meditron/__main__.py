"""Run the `meditron` command as `python -m meditron`."""

from meditron.cli import main

if __name__ == "__main__":
    main()
