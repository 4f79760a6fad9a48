"""`python -m meditron` is the `meditron` command."""

from meditron.cli import main

if __name__ == "__main__":
    main()
