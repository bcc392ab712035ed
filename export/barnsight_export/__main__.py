"""`python -m barnsight_export` is the command `barnsight-export`."""

import sys

from barnsight_export.cli import main

sys.exit(main())
