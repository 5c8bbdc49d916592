"""The local cloud: start it, deploy template.yaml to it, show the story, end it."""

import sys

# Read by any Python 3, so that an old one says what is wrong instead of a syntax error.
if not (3, 11) <= sys.version_info[:2] <= (3, 14):
    sys.exit(
        "error: Quittance needs Python 3.11 to 3.14, this is %d.%d; "  # noqa: UP031 - see above
        "name another one: make PYTHON=python3.13 ..." % sys.version_info[:2]
    )
