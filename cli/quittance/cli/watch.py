"""`--watch`: build and run a project again at each change of its sources."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Final

from watchfiles import Change, DefaultFilter
from watchfiles import watch as changes

from quittance.cli import output
from quittance.cli.build import build
from quittance.cli.exits import CliError, Exit, UsageError
from quittance.cli.project import FILE_NAME, Project

_LOOK_MS: Final = 200


def watch(agent: Path | None, once: Callable[[], int]) -> int:
    """Run once, and again at each change, until Ctrl-C. A failure is shown and does not end it."""
    if output.mode.json:
        raise UsageError("--watch and --json do not go together.", "--json prints one document; leave one out.")
    logging.getLogger("watchfiles").setLevel(logging.ERROR)
    folder = None if agent is None or agent.is_dir() else agent
    paths, keep = ([folder.parent], _Only({folder.resolve()})) if folder else _sources(Project.find(agent))
    # The watcher begins before the first run, so a change during a run is not missed: it is there at the next look.
    looks = changes(*paths, watch_filter=keep, debounce=300, rust_timeout=_LOOK_MS, yield_on_timeout=True)
    try:
        next(looks)
        _attempt(agent, once)
        for changed in looks:
            if changed:
                _attempt(agent, once)
    except KeyboardInterrupt:
        output.say("stopped")
    return Exit.DONE


def _attempt(agent: Path | None, once: Callable[[], int]) -> None:
    try:
        if agent is None or agent.is_dir():
            build(Project.find(agent))
        once()
    except CliError as error:
        output.failure(error)
    output.say("Waiting for a change; Ctrl-C stops.")


def _sources(project: Project) -> tuple[list[Path], "_Sources"]:
    """What to watch: the sources that the project names, and its file; not what the build itself writes."""
    named = [project.inside("build.watch", name) for name in project.file.build.watch]
    missing = [path for path in named if not path.exists()]
    if missing:
        mend = f"Correct build.watch in {FILE_NAME}."
        raise UsageError(f"{missing[0]} does not exist, so it cannot be watched.", mend)
    return [project.folder, *named], _Sources(project, named)


class _Only:
    """Only these files."""

    def __init__(self, files: set[Path]) -> None:
        self._files = files

    def __call__(self, _change: Change, path: str) -> bool:
        return Path(path).resolve() in self._files


class _Sources(DefaultFilter):
    """The project's file and its sources, without hidden files, caches and what the build writes."""

    def __init__(self, project: Project, named: list[Path]) -> None:
        super().__init__()
        self._file = (project.folder / FILE_NAME).resolve()
        self._named = [path.resolve() for path in named]
        module, folder = project.module_path.resolve(), project.folder.resolve()
        self._built = module if module.parent == folder else module.parent

    def __call__(self, change: Change, path: str) -> bool:
        changed = Path(path).resolve()
        if changed == self._file:
            return True
        if changed.is_relative_to(self._built) or not super().__call__(change, path):
            return False
        return any(changed.is_relative_to(source) for source in self._named)
