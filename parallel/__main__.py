"""
`python -m parallel`: the command line of `parallel.cli`.
"""

import sys

from parallel.cli import main

if __name__ == "__main__":
    sys.exit(main())
