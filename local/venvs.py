"""Virtual environments for the tools, created when needed from pinned requirement files.

Most are apart because their pins conflict: the local cloud (which must not contain packages that the functions
bring), the SAM command line, the policy scan, the generators of clients and requests, and the tests with the linters.
The plots are apart because they are large and only `make bench` draws them.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from pathlib import Path

from local.console import CommandError, relative, run, step
from local.paths import LOCAL, ROOT, VENVS, locked

BASE_PYTHON = Path(getattr(sys, "_base_executable", sys.executable)).resolve()
PYTHON_VERSION = "{}.{}".format(*sys.version_info[:2])

_WHAT = {
    "uv": "the installer",
    "cloud": "the local cloud's environment",
    "sam": "the SAM command line",
    "policy": "the policy scan",
    "generators": "generators of clients and requests",
    "plots": "the plots of the benchmarks",
    "dev": "tests and linters",
}
_LOG = LOCAL / "logs" / "install.log"


def tools_env() -> dict[str, str]:
    """Return the environment variables for tools: the caller's without its AWS account and make flags."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("AWS_", "SAM_", "MAKE", "MFLAGS", "PYTHONPATH", "PYTHONHOME"))
        or name == "AWS_CA_BUNDLE"
    }
    local_hosts = ",".join(filter(None, [kept.get("NO_PROXY", kept.get("no_proxy", "")), "127.0.0.1"]))
    return {
        **kept,
        "NO_PROXY": local_hosts,
        "no_proxy": local_hosts,
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "AWS_EC2_METADATA_DISABLED": "true",
        "SAM_CLI_TELEMETRY": "0",
        "__SAM_CLI_APP_DIR": str(LOCAL / "sam-home"),
        "VIRTUAL_ENV": "",
    }


def python(name: str) -> Path:
    """Return the path of an environment's interpreter; it need not exist."""
    return VENVS / name / "bin" / "python"


def ensure(name: str) -> Path:
    """Return the environment's bin directory; create the environment if its requirement file has changed."""
    home, requirements = VENVS / name, ROOT / "requirements" / f"{name}.txt"
    digest = hashlib.sha256(f"{BASE_PYTHON} {sys.version} {home}\n".encode())
    for source in (requirements, ROOT / "requirements" / "uv.txt"):
        digest.update(source.read_bytes())
    stamp, wanted = home / ".made-for", digest.hexdigest()
    if stamp.is_file() and stamp.read_text() == wanted:
        return home / "bin"
    uv = python("uv") if name == "uv" else ensure("uv") / "python"
    with locked(VENVS / f"{name}.lock"):
        if stamp.is_file() and stamp.read_text() == wanted:
            return home / "bin"
        with step(f"installing {_WHAT[name]}"):
            shutil.rmtree(home, ignore_errors=True)
            _install(name, home, uv, requirements)
            stamp.write_text(wanted)
    return home / "bin"


def _install(name: str, home: Path, uv: Path, requirements: Path) -> None:
    env = tools_env()
    try:
        if name == "uv":
            run([str(BASE_PYTHON), "-m", "venv", str(home)], _LOG, env)
            run([str(uv), "-m", "pip", "install", "-qr", str(requirements)], _LOG, env)
            return
        make = [str(uv), "-m", "uv", "venv", "--quiet", "--python", str(BASE_PYTHON), str(home)]
        fill = ["install", "--quiet", "--python", str(python(name)), "-r", str(requirements)]
        run(make, _LOG, env)
        try:
            run([str(uv), "-m", "uv", "pip", *fill], _LOG, env)
        except CommandError:  # uv does not read pip's settings (for example a private index); pip does
            run([str(uv), "-m", "pip", "--python", str(python(name)), "install", "-qr", str(requirements)], _LOG, env)
    except CommandError as error:
        msg = (
            f"could not install {relative(requirements)} with {BASE_PYTHON}: check that this Python "
            f"has venv and pip and that the package index is reachable, then try again: {error}"
        )
        raise CommandError(msg) from error
