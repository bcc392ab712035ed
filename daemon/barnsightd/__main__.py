"""`python -m barnsightd` is the command `barnsight`."""

import sys

from barnsightd.cli import main

sys.exit(main())
