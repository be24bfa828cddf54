"""`python -m layercard`: the command line, where the script `layercard` is not on the path."""

import sys

from layercard.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
