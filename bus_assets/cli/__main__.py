"""``python -m bus_assets.cli``, the same as ``bus``."""

import sys

from bus_assets.cli import main

if __name__ == "__main__":
    sys.exit(main())
