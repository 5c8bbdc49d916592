"""`quittance publish`: build, test and publish a project, as a new agent or as the next version of its agent."""

from pathlib import Path
from typing import Annotated, Any

import typer

from quittance import canonical_json
from quittance.acceptance.rules import rules_json
from quittance.agent import AgentState
from quittance.api.models import AgentAnswer, AgentUpload
from quittance.cli import options, output, remote
from quittance.cli.build import build as build_project
from quittance.cli.examples import run_examples
from quittance.cli.exits import CliError, Exit, RefusedError, UsageError
from quittance.cli.project import FILE_NAME, Project
from quittance.cli.remote import Remote, price_text
from quittance.cli.run import Target
from quittance.client import NotFoundError, PublishedVersion, VersionTerms, format_credits
from quittance.limits import AMOUNT_MICRO_MAX


class FailedError(CliError):
    """The agent did not do what its contract says."""

    exit_code = Exit.FAILED


def publish(
    folder: Annotated[
        Path | None, typer.Argument(help=f"The folder of a project ({FILE_NAME}); by default the current project.")
    ] = None,
    build: Annotated[bool, typer.Option("--build/--no-build", help="Build the module first.")] = True,
    test: Annotated[bool, typer.Option("--test/--no-test", help="Run the contract's examples here first.")] = True,
    bond: Annotated[str | None, typer.Option(help="Add so many credits to your bond first.")] = None,
    agent: Annotated[str | None, typer.Option(help="The agent to publish; by default the project's.")] = None,
    new: Annotated[bool, typer.Option("--new", help="Register a new agent, even if the project has one.")] = False,
    profile: remote.ProfileName = None,
    json: options.Json = False,  # noqa: ARG001 - its callback acts
    quiet: options.Quiet = False,  # noqa: ARG001 - its callback acts
) -> int:
    """Build, test and publish a project: as a new agent the first time, then as its next version.

    The agent's id is written into quittance.toml, for each profile its own.
    """
    project = Project.find(folder)
    terms = terms_of(project)
    if agent is not None and new:
        raise UsageError("--agent and --new are both given.", "Leave one of them out.")
    bond_micro = None if bond is None else options.amount("--bond", bond, least_micro=1, most_micro=AMOUNT_MICRO_MAX)
    with remote.connected(profile) as found:
        key = found.platform.name
        agent_id = None if new else agent or (project.file.agents.get(key) if key else None)
        known = None if agent_id is None else _known(found, agent_id, named=agent is not None)
        check_bond(found, bond_micro)
        module = _module(project, build=build, test=test)
        published = _publish(found, project, module, terms, known)
    _report(found, project, published)
    return Exit.DONE


def terms_of(project: Project) -> VersionTerms:
    """The terms and the contract of a project, each stated: what the file does not have is taken away.

    Raises UsageError.
    """
    return VersionTerms(
        tariff=canonical_json.read(project.tariff),
        limits=project.file.limits.model_dump(mode="json"),
        acceptance=canonical_json.read(rules_json(project.rules_alone)),
        task_judges=project.file.task_judges,
        contract=project.contract,
    )


def _known(found: Remote, agent_id: str, *, named: bool) -> AgentAnswer | None:
    """The agent whose next version this is; None if it must be registered anew. Raises RefusedError."""
    try:
        agent = found.client.agents.get(agent_id)
    except NotFoundError as error:
        if not error.code or named or not found.is_local:
            if error.code and not named:
                mend = "Was it published on another platform? quittance publish --new registers the agent again."
                raise RefusedError(f"{error}", mend, code=error.code) from error
            raise
        output.say(f"The local cloud does not know {agent_id}: it was started anew. The agent is registered again.")
        return None
    if agent.state is AgentState.RETIRED:
        mend = "It stays so; quittance publish --new registers another agent."
        raise RefusedError(f"The agent {agent_id} is retired.", mend, code="retired")
    return agent


def check_bond(found: Remote, add_micro: int | None) -> None:
    """Add to the bond, and make sure that it is enough to publish. Raises RefusedError, and errors of the client."""
    if add_micro is not None:
        found.client.move_bond(format_credits(add_micro))
        output.say(f"Added {format_credits(add_micro)} credits to your bond.")
    bond = found.client.bond()
    missing = bond.minimum_micro - bond.available_micro
    if missing <= 0:
        return
    has, least = format_credits(bond.available_micro), format_credits(bond.minimum_micro)
    amount = format_credits(missing)
    mend = f"Add what is missing with quittance publish --bond {amount}: it pays for failed runs, the rest stays yours."
    lacking = missing - found.client.balance().available_micro
    if lacking > 0:
        need = format_credits(lacking)
        how = f"quittance deposit {need}" if found.is_local else "ask whoever runs the platform to deposit them"
        mend = f"First {need} more credits are needed: {how}. Then: quittance publish --bond {amount}"
    raise RefusedError(
        f"Your bond has {has} credits, and to publish it needs {least}: {amount} are missing.",
        mend,
        code="bond_required",
        bond=has,
        required=least,
        missing=amount,
    )


def _module(project: Project, *, build: bool, test: bool) -> bytes:
    """The module to publish, built and tested as the user wishes. Raises UsageError, FailedError."""
    if build and project.file.build.commands:
        with output.progress("building"):
            build_project(project)
    module = Target(project.module_path, project).read()
    if test and project.contract.examples:
        failed = [result for result in run_examples(project, module) if result.failure is not None]
        if failed:
            names = "; ".join(f"{result.example.name}: {result.failure}" for result in failed)
            mend = "quittance test shows more. The platform would reject the version; --no-test lets it try."
            raise FailedError(f"The contract's examples fail: {output.one_line(names)}", mend, failed=len(failed))
    return module


def _publish(
    found: Remote, project: Project, module: bytes, terms: VersionTerms, known: AgentAnswer | None
) -> PublishedVersion:
    agents, about = found.client.agents, project.file.agent
    opened: AgentUpload
    if known is None:
        with output.progress("registering the agent"):
            opened = agents.register(about.name, description=about.description, **terms)
        _remember(found, project, opened.agent_id)
    else:
        with output.progress("opening a version"):
            stated = terms.copy()
            stated["task_judges"] = terms.get("task_judges") or "refused"  # absent would keep what the agent has
            opened = agents.open_version(known.agent_id, **stated)
    with output.progress("uploading the module") as step:
        agents.upload(opened.upload, module, progress=lambda sent, size: step.update(done=sent, total=size))
    with output.progress("the platform checks and compiles it, and runs its examples"):
        published = agents.wait_published(opened.agent_id, opened.version)
    if known is not None and (known.name, known.description) != (about.name, about.description):
        agents.update(known.agent_id, name=about.name, description=about.description)
    if known is not None and project.file.agents.get(found.platform.name or "") is None:
        _remember(found, project, opened.agent_id)
    return published


def _remember(found: Remote, project: Project, agent_id: str) -> None:
    """Write the agent's id into the project's file, for this profile: at once, so that a retry finds the agent."""
    name = found.platform.name
    if name is None:
        output.say(f"The agent is {agent_id}. Without a profile it is not written into {FILE_NAME}: use --agent.")
        return
    try:
        project.remember(name, agent_id)
    except UsageError as error:
        output.say(f"{error.problem} The agent is {agent_id}: {error.mend}")


def _report(found: Remote, project: Project, published: PublishedVersion) -> None:
    tariff = project.file.tariff
    if output.mode.json:
        body: dict[str, Any] = published.model_dump(mode="json", by_alias=True)
        output.document({**body, "name": project.file.agent.name, "profile": found.platform.name})
        return
    output.facts(
        [
            ("agent", f"{published.agent_id} ({project.file.agent.name})"),
            ("version", f"{published.number}, {published.state}"),
            ("module", published.module_sha256 or ""),
            ("price", price_text(tariff)),
            ("platform", f"{found.platform.name or 'no profile'}: {found.platform.profile.api}"),
        ]
    )
    output.say(f"Anyone can call it now: quittance call {published.agent_id} --input FILE")
