"""`python -m mimkit.cli`: the words of the command line enter, an exit status leaves."""

import sys

from mimkit.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
