"""The documents are true: every command in them is one that CI runs, and what they name is there."""

import argparse
import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from api import names
from dra_driver import cli

_ROOT = Path(__file__).parents[2]
_CHART = _ROOT / "deploy/helm/dra-driver-vgpu"
_DOCUMENTS = sorted(
    [*_ROOT.glob("*.md"), *_ROOT.glob("docs/**/*.md"), *_ROOT.glob("libvgpu/**/*.md"), *_ROOT.glob("deploy/*/*.md")]
)
_CI = (_ROOT / ".ci/run").read_text()
_INSTALL = (
    "helm install vgpu deploy/helm/dra-driver-vgpu --namespace vgpu-system --create-namespace "
    "--set image.repository=REGISTRY/dra-driver-vgpu"
)
_ELSEWHERE = {
    # tests/unit/dra_driver/test_running.py runs it with the stub driver's root
    ".venv/bin/dra-driver run --memory 2Gi --cores 25 -- nvidia-smi",
    # tests/e2e installs the chart with `helm upgrade --install`, and an image that the node has
    _INSTALL,
}
_OF_OTHERS = {
    "No space left on device",
    "ASan runtime does not come first",
    "cannot be preloaded (wrong ELF class: ELFCLASS64): ignored",
    "libcuda.so cannot found!",
    "cannot find -lcuda",
    "unable to validate against any security context constraint",
    "insufficient quota to match these scopes",
    'the server doesn\'t have a resource type "nodeinventories"',
    "Preemption is not helpful for scheduling",
}
"""Messages on docs/troubleshooting.md of the kernel, a sanitizer, the loader and Kubernetes: not in our code."""
_OPTIONS_OF_OTHERS = {
    "--reset-then-reuse-values",
    "--reuse-values",
    "--runtime-config",
    "--skip-crds",
    "--take-ownership",
}
"""Of kube-apiserver and helm."""
_SAME = 0.38
"""Entries of the changelog that have more of their words in common are about one thing; others had 0.33 at the most."""


def _commands(document: Path) -> list[str]:
    blocks = re.findall(r"^```sh\n(.*?)^```", document.read_text(), re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.replace("\\\n", " ").splitlines() if line.strip()]


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md"])
def test_every_command_of_a_document_is_run_by_ci(name: str) -> None:
    commands = _commands(_ROOT / name)
    assert commands
    run_by_ci = {line.strip() for line in _CI.splitlines()}
    assert [command for command in commands if command not in run_by_ci | _ELSEWHERE] == []


@pytest.mark.parametrize("document", _DOCUMENTS, ids=lambda path: str(path.relative_to(_ROOT)))
def test_every_link_to_a_file_leads_somewhere(document: Path) -> None:
    targets = re.findall(r"\]\((?!https?:)([^)#]+)", document.read_text())
    assert [target for target in targets if not (document.parent / target).exists()] == []


@pytest.mark.parametrize("document", _DOCUMENTS, ids=lambda path: str(path.relative_to(_ROOT)))
def test_every_link_into_a_document_leads_to_a_heading(document: Path) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]*\.md)?#([^)]+)\)", document.read_text())
    assert [
        link for link in links if link[1] not in _anchors((document.parent / link[0]) if link[0] else document)
    ] == []


def _anchors(document: Path) -> set[str]:
    """Return the headings of a document as links name them."""
    headings = re.findall(r"^#+ (.*)$", document.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_reason_event_metric_and_variable_that_a_document_names_is_in_the_code() -> None:
    folders = ("api", "controller", "kubeletplugin", "dra_driver", "libvgpu", "deploy", "tests")
    kinds = {".py", ".c", ".h", ".yaml", ".tpl", ".json", ".sh"}
    code = "\n".join(
        path.read_text() for folder in folders for path in (_ROOT / folder).rglob("*") if path.suffix in kinds
    )
    documents = [_ROOT / "README.md", *_ROOT.glob("docs/*.md"), *_ROOT.glob("deploy/*/README.md")]
    named = {
        (document.name, name)
        for document in documents
        for name in re.findall(r"`((?:Card|VGPU)[A-Z]\w+|VGPU_\w+|vgpu_\w+)", document.read_text())
    }
    assert len(named) > 50
    # A client of Prometheus adds `_total` to the names of counters.
    assert [where for where in sorted(named) if where[1].removesuffix("_total") not in code] == []


def test_every_source_file_that_a_document_names_is_there() -> None:
    folders = ("api", "controller", "kubeletplugin", "dra_driver", "libvgpu", "deploy", "tests", "docs", "requirements")
    there = [path.relative_to(_ROOT) for folder in folders for path in (_ROOT / folder).rglob("*.*")]
    there += [path.relative_to(_ROOT) for path in _ROOT.glob("*.*")]
    named = {
        (document.name, name)
        for document in _DOCUMENTS
        for name in re.findall(r"`([\w./-]+\.(?:py|c|h|def|S|yaml|sh))`", document.read_text())
    }
    assert len(named) > 50
    ends = {"/".join(path.parts[start:]) for path in there for start in range(len(path.parts))}
    assert [where for where in sorted(named) if where[1].removeprefix("../") not in ends] == []


def test_every_message_that_the_page_on_troubles_quotes_is_said_by_somebody() -> None:
    folders = ("api", "controller", "dra_driver", "kubeletplugin", "libvgpu", "deploy", "tests/e2e")
    sources = [path for folder in folders for path in (_ROOT / folder).rglob("*") if path.suffix in {".py", ".c"}]
    code = "\n".join(path.read_text() for path in sources)
    code = re.sub(r'"\s*\n\s*f?"', "", code)  # a text over several lines
    code = re.sub(r"{[^{}\n]*}|%\w+", "…", code)  # what is put in
    rows = [line for line in (_ROOT / "docs/troubleshooting.md").read_text().splitlines() if line.startswith("| ")]
    cells = [cell for row in rows for cell in re.split(r" (?<!\\)\| ", row)[:2]]
    quotes = [text for cell in cells for text in re.findall("`([^`]+)`", cell) if not text.startswith("kubectl")]
    messages = {text for text in quotes if re.search("[a-z]+ [a-z]+ [a-z]+", text)} - _OF_OTHERS
    assert len(messages) > 25
    parts = {part.strip() for message in messages for part in message.split("…")}
    assert [part for part in sorted(parts) if part not in code] == []


def test_the_page_on_troubles_has_the_alerts_of_the_chart() -> None:
    rules = yaml.safe_load((_CHART / "files/alerts.yaml").read_text())
    section = (_ROOT / "docs/troubleshooting.md").read_text().partition("## What to alert on")[2]
    rows = re.findall(r"^\| (VGPU\w+) \| `([^`]+)` \| (\w*) ?\|", section, re.MULTILINE)
    assert rows == [(rule["alert"], rule["expr"], rule.get("for", "")) for rule in rules]


def test_the_alerts_of_the_chart_are_about_metrics_that_there_are() -> None:
    rules = yaml.safe_load((_CHART / "files/alerts.yaml").read_text())
    metrics = set(
        re.findall(r"`(vgpu_\w+)`", (_ROOT / "docs/metrics.md").read_text())
    )  # a test compares it with the code
    named = {name.removesuffix("_count") for rule in rules for name in re.findall(r"vgpu_\w+", rule["expr"])}
    assert named - metrics == set()


def test_every_make_target_that_a_document_names_has_a_line_of_help() -> None:
    makefile = (_ROOT / "Makefile").read_text()
    named = {
        target
        for document in _DOCUMENTS
        for command in re.findall(r"(?:`|^)make ([a-z0-9 -]+)", document.read_text(), re.MULTILINE)
        for target in command.split()
        if target[0].isalpha()
    }
    assert {"demo", "test", "lint", "fmt", "gpu"} <= named
    assert [target for target in sorted(named) if not re.search(rf"^{target}:.*## \S", makefile, re.MULTILINE)] == []


def test_every_event_and_reason_that_there_is_stands_on_the_page_on_troubles() -> None:
    page = (_ROOT / "docs/troubleshooting.md").read_text()
    said = [value for name, value in vars(names).items() if name.startswith(("EVENT_", "REASON_"))]
    assert len(said) > 10
    assert [value for value in said if f"`{value}`" not in page] == []


def _options(parser: argparse.ArgumentParser) -> Iterator[str]:
    for action in parser._actions:
        yield from action.option_strings
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from _options(command)


def test_every_option_that_a_document_names_is_one_of_a_program_of_ours() -> None:
    sources = [*(_ROOT / "deploy").rglob("*.py"), *(_ROOT / "tests/bench").glob("*.py")]
    known = set(_options(cli._parser()))
    known |= {option for path in sources for option in re.findall(r'"(--[a-z-]+)"', path.read_text())}
    named = {
        (document.name, option)
        for document in _DOCUMENTS
        for option in re.findall(r"`(--[a-z-]+)", document.read_text())
    }
    assert len(named) > 10
    assert [where for where in sorted(named) if where[1] not in known | _OPTIONS_OF_OTHERS] == []


def test_every_value_of_the_chart_that_a_document_names_is_there() -> None:
    values: dict[str, Any] = yaml.safe_load((_CHART / "values.yaml").read_text())
    sections = "|".join(name for name, value in values.items() if isinstance(value, dict))
    named = {
        (document.name, path)
        for document in _DOCUMENTS
        for path in re.findall(rf"`((?:{sections})(?:\.\w+)+)", document.read_text())
    }
    assert len(named) > 15
    assert [where for where in sorted(named) if not _has(values, where[1].split("."))] == []


def _has(value: Any, path: list[str]) -> bool:
    return not path or (isinstance(value, dict) and path[0] in value and _has(value[path[0]], path[1:]))


@pytest.mark.parametrize(
    ("folder", "pattern"), [("deploy/examples", "*.yaml"), ("deploy/local", "*.py"), ("libvgpu", "*.py")]
)
def test_the_readme_of_a_folder_has_all_its_files(folder: str, pattern: str) -> None:
    page = (_ROOT / folder / "README.md").read_text()
    files = [path for path in (_ROOT / folder).glob(pattern) if path.stem != "__init__"]
    assert [path.name for path in sorted(files) if not re.search(rf"[`\[]{path.stem}\b", page)] == []


def test_every_document_can_be_reached_from_the_readme() -> None:
    reached: set[Path] = set()
    ways = [_ROOT / "README.md"]
    while ways:
        document = ways.pop()
        if document in reached:
            continue
        reached.add(document)
        targets = re.findall(r"\]\((?!https?:)([^)#]+)", document.read_text())
        found = [(document.parent / target).resolve() for target in targets]
        ways += [path for path in found if path.suffix == ".md"]
        ways += [page for path in found if path.is_dir() for page in path.glob("*.md")]
    assert [str(path.relative_to(_ROOT)) for path in _DOCUMENTS if path not in reached] == []


def test_the_changelog_says_each_thing_once() -> None:
    """Two entries about one thing come of merges that keep the old wording beside the new one."""
    entries = re.findall(r"^- (.*(?:\n  .*)*)", (_ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    words = [(entry, set(re.findall(r"\w+", entry.lower()))) for entry in entries]
    assert len(words) > 50
    assert [
        (one[:60], other[:60])
        for (one, ones), (other, others) in itertools.combinations(words, 2)
        if len(ones & others) > _SAME * len(ones | others)
    ] == []
