"""Runs the program as `python -m dra_driver`."""

import sys

from dra_driver.cli import main

sys.exit(main())
