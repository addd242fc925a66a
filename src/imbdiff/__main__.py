"""``python -m imbdiff``."""

import sys

from imbdiff.cli import main

if __name__ == "__main__":
    sys.exit(main())
