"""Compare our declarations of CUDA and NVML (libvgpu/include/abi) with the vendor's headers: sizes, offsets, values.

Run by hand when a declaration changes; the headers are not part of the project. They come with PyPI packages, such as:
    pip download --no-deps -d /tmp/h nvidia-cuda-runtime-cu12 nvidia-nvml-dev-cu12 && cd /tmp/h && unzip -o '*.whl'
    python tests/unit/stub/check_abi.py /tmp/h/nvidia/cuda_runtime/include /tmp/h/nvidia/nvml_dev/include
"""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

ABI = Path(__file__).parents[3] / "libvgpu" / "include" / "abi"


def structures(text: str) -> dict[str, list[str]]:
    """Return the structures of a header of ours with the names of their plain members."""
    found = {}
    for body, name in re.findall(r"typedef (?:struct|union) \w+ \{\n((?:.*\n)*?)\} (\w+);", text):
        outer = re.sub(r"(?:struct|union) \{(?:[^{}]|\{[^{}]*\})*\}[^;]*;", "", body)  # members of members
        members = re.findall(r"^\s+[\w ]+?[\s*]((?:\w+(?:\[[^\]]*\])?(?:, )?)+);", outer, re.MULTILINE)
        found[name] = [re.sub(r"\[.*", "", one) for group in members for one in group.split(", ")]
    return found


def constants(text: str) -> list[str]:
    """Return the enumerators and results of a header of ours."""
    listed = re.findall(r"\b((?:CU|CUDA|NVML)_[A-Z0-9_x]+) = [0-9]", text)
    return sorted({*listed, *re.findall(r"X\((\w+), \d+, \"", text)})


def measure(header: str, folders: list[Path], types: dict[str, list[str]], names: list[str]) -> dict[str, str]:
    """Compile a program against a header; return what it says of sizes, offsets and values."""
    lines = [f'printf("{name} size %zu\\n", sizeof({name}));' for name in types]
    lines += [
        f'printf("{name}.{member} %zu+%zu\\n", offsetof({name}, {member}), sizeof((({name} *)0)->{member}));'
        for name, members in types.items()
        for member in members
    ]
    lines += [f'printf("{name} = %lld\\n", (long long)({name}));' for name in names]
    program = f'#include <stdio.h>\n#include <stddef.h>\n#include "{header}"\nint main(void) {{ {"".join(lines)} }}\n'
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "measure.c"
        source.write_text(program, encoding="utf-8")
        includes = [f"-I{one}" for one in folders]
        subprocess.run(["cc", *includes, "-w", "-o", f"{folder}/measure", source], check=True)
        output = subprocess.run([f"{folder}/measure"], check=True, capture_output=True, text=True).stdout
    return dict(line.split(" ", 1) for line in output.splitlines())


def parameters(text: str) -> list[str]:
    """Split a parameter list at its commas; void is none."""
    inside = re.sub(r"\s+", " ", text).strip()
    return [] if inside in ("", "void") else inside.split(",")


def check_functions(ours: str, theirs: str, pattern: str) -> list[str]:
    """Compare how many parameters functions take; return what differs."""
    problems = []
    vendor = {name: parameters(text) for name, text in re.findall(pattern, theirs)}
    for name, text in re.findall(r"API\w*\((\w+), (?:\w+, \d+, )?\(([^()]*)\)", ours):
        if name in vendor and len(vendor[name]) != len(parameters(text)):
            problems.append(f"{name}: {len(parameters(text))} parameters, expected {len(vendor[name])}")
    return problems


def check(ours: str, theirs: Path, functions: str, pattern: str) -> list[str]:
    """Compare one header of ours with the vendor's; return what differs."""
    text = (ABI / ours).read_text(encoding="utf-8")
    vendor = theirs.read_text(encoding="utf-8", errors="replace")
    types = {name: members for name, members in structures(text).items() if re.search(rf"\b{name}\b", vendor)}
    names = [name for name in constants(text) if re.search(rf"\b{name}\b", vendor)]
    ours_says = measure(ours, [ABI], types, names)
    theirs_says = measure(str(theirs), [theirs.parent], types, names)
    problems = [
        f"{key}: {value}, expected {theirs_says[key]}" for key, value in ours_says.items() if value != theirs_says[key]
    ]
    problems += check_functions((ABI / functions).read_text(encoding="utf-8"), vendor, pattern)
    print(f"{ours}: {len(types)} structures, {len(names)} constants, {len(problems)} differences")
    return problems


def main() -> int:
    """Check both headers; the exit status says whether all is equal."""
    cuda, nvml = (Path(argument) for argument in sys.argv[1:3])
    problems = check("cuda.h", cuda / "cuda.h", "cuda_api.def", r"CUDAAPI\s+(\w+)\(([^()]*)\)\s*;")
    problems += check("nvml.h", nvml / "nvml.h", "nvml_api.def", r"DECLDIR\s+(\w+)\(([^()]*)\)\s*;")
    for problem in problems:
        print(problem)
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main())
