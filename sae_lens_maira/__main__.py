"""``python -m sae_lens_maira`` is ``sae-lens-maira``."""

import sys

from sae_lens_maira.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
