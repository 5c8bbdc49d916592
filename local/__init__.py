"""The local cloud: start it, deploy template.yaml to it, run the demo, stop it."""

import sys

# Any Python 3 can parse this file, so an old one prints this message instead of a syntax error.
if not (3, 11) <= sys.version_info[:2] <= (3, 14):
    sys.exit(
        "error: Quittance needs Python 3.11 to 3.14, this is %d.%d; "  # noqa: UP031 - see above
        "choose another one: make PYTHON=python3.13 ..." % sys.version_info[:2]
    )
