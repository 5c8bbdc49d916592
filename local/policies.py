"""A policy scan (checkov) of template.yaml as SAM expands it, including roles, in a separate virtual environment.

Every exception is in the template's Metadata with its reason. A finding without an exception fails the scan, and so
does an exception that is not needed.
"""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from samtranslator.translator.transform import transform  # type: ignore[import-not-found]  # installed in that environment only
from samtranslator.yaml_helper import yaml_parse  # type: ignore[import-not-found]

ROOT = Path(__file__).resolve().parent.parent
_EXPANDED = ROOT / ".local" / "expanded.json"
_PATHS = ("CodeUri", "ContentUri", "DefinitionUri")
_MANAGED = ("AWSLambdaBasicExecutionRole", "AWSXRayDaemonWriteAccess")


class _ManagedPolicies:
    def load(self) -> dict[str, str]:
        return {name: f"arn:aws:iam::aws:policy/{name}" for name in _MANAGED}


def expand(template: dict[str, Any]) -> dict[str, Any]:
    """Return the template that CloudFormation would process. Paths on this disk are replaced by S3 locations."""
    for resource in template["Resources"].values():
        properties = resource.get("Properties", {})
        properties.update({name: "s3://bucket/key" for name in _PATHS if name in properties})
    os.environ.setdefault("AWS_DEFAULT_REGION", "us-east-1")
    logging.disable(logging.WARNING)  # it warns about feature toggles that exist only on AWS
    expanded: dict[str, Any] = transform(template, {}, _ManagedPolicies())
    return expanded


def findings(expanded: dict[str, Any]) -> dict[str, str]:
    """Return checkov's findings: for each check's id, a sentence that names the resources."""
    _EXPANDED.write_text(json.dumps(expanded, indent=1))
    checkov = [str(Path(sys.executable).with_name("checkov")), "--file", str(_EXPANDED), "--skip-download"]
    checkov += ["--framework", "cloudformation", "--output", "json", "--quiet"]
    output = subprocess.run(checkov, capture_output=True, text=True, check=False).stdout
    report = json.loads(output)
    if not report.get("results") or report["summary"]["parsing_errors"] or not report["summary"]["passed"]:
        sys.exit(f"checkov did not read {_EXPANDED}: {output}")
    found: dict[str, list[str]] = {}
    names: dict[str, str] = {}
    for check in report["results"]["failed_checks"]:
        names[check["check_id"]] = check["check_name"]
        found.setdefault(check["check_id"], []).append(check["resource"].split(".")[-1])
    return {check: f"{name}: {', '.join(sorted(found[check]))}" for check, name in names.items()}


def main() -> None:
    """Print each finding without an exception, and each exception that is not needed."""
    template = yaml_parse((ROOT / "template.yaml").read_text())
    excused = {entry["id"] for entry in template["Metadata"]["checkov"]["skip"]}
    found = findings(expand(template))
    wrong = [f"{check}: {found[check]}" for check in sorted(found.keys() - excused)]
    wrong += [f"{check}: this exception is no longer needed" for check in sorted(excused - found.keys())]
    for line in wrong:
        print(f"template.yaml: {line}")
    print(f"policy scan: {len(found)} kinds of findings, {len(excused)} exceptions, {len(wrong)} wrong")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
