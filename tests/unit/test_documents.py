"""The documents are true: every command in them is one that CI runs."""

import re
from pathlib import Path

import pytest
import yaml

_ROOT = Path(__file__).parents[2]
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
}
"""Messages on docs/troubleshooting.md of the kernel, a sanitizer, the loader and Kubernetes: not in our code."""


def _commands(document: Path) -> list[str]:
    blocks = re.findall(r"^```sh\n(.*?)^```", document.read_text(), re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.replace("\\\n", " ").splitlines() if line.strip()]


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md"])
def test_every_command_of_a_document_is_run_by_ci(name: str) -> None:
    commands = _commands(_ROOT / name)
    assert commands
    run_by_ci = {line.strip() for line in _CI.splitlines()}
    assert [command for command in commands if command not in run_by_ci | _ELSEWHERE] == []


@pytest.mark.parametrize("document", [*_ROOT.glob("*.md"), *_ROOT.glob("docs/**/*.md")], ids=lambda path: path.name)
def test_every_link_to_a_file_leads_somewhere(document: Path) -> None:
    targets = re.findall(r"\]\((?!https?:)([^)#]+)", document.read_text())
    assert [target for target in targets if not (document.parent / target).exists()] == []


@pytest.mark.parametrize("document", [*_ROOT.glob("*.md"), *_ROOT.glob("docs/**/*.md")], ids=lambda path: path.name)
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
    documents = [*_ROOT.glob("*.md"), *_ROOT.glob("docs/**/*.md"), *(_ROOT / "libvgpu").rglob("*.md")]
    documents += (_ROOT / "deploy").rglob("*.md")
    named = {
        (document.name, name)
        for document in documents
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
    rules = yaml.safe_load((_ROOT / "deploy/helm/dra-driver-vgpu/files/alerts.yaml").read_text())
    section = (_ROOT / "docs/troubleshooting.md").read_text().partition("## What to alert on")[2]
    rows = re.findall(r"^\| (VGPU\w+) \| `([^`]+)` \| (\w*) ?\|", section, re.MULTILINE)
    assert rows == [(rule["alert"], rule["expr"], rule.get("for", "")) for rule in rules]


def test_the_alerts_of_the_chart_are_about_metrics_that_there_are() -> None:
    rules = yaml.safe_load((_ROOT / "deploy/helm/dra-driver-vgpu/files/alerts.yaml").read_text())
    metrics = set(
        re.findall(r"`(vgpu_\w+)`", (_ROOT / "docs/metrics.md").read_text())
    )  # a test compares it with the code
    named = {name.removesuffix("_count") for rule in rules for name in re.findall(r"vgpu_\w+", rule["expr"])}
    assert named - metrics == set()


def test_every_make_target_has_a_line_of_help() -> None:
    makefile = (_ROOT / "Makefile").read_text()
    wanted = ["help", "demo", "demo-down", "test", "e2e", "bench", "lint", "fmt", "build", "clean"]
    assert [target for target in wanted if not re.search(rf"^{target}:.*## \S", makefile, re.MULTILINE)] == []
