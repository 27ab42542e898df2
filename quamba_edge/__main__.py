"""`python -m quamba_edge` is `quamba-edge`."""

import sys

from quamba_edge.cli import main

if __name__ == "__main__":
    sys.exit(main())
