"""Compiles kernel sources with NVRTC. Run through check-kernels.sh.

A source names its variants in one line, `// Variants: A=1|2 B:C=x:y|z:w`: every combination of the groups is compiled, a
group being one macro or several that change together. common.cuh goes before each source, as at run time.
"""

import ctypes
import glob
import hashlib
import itertools
import multiprocessing
import os
import re
import sys
import time

ARCHITECTURES = ["sm_75", "sm_80", "sm_86", "sm_89", "sm_90a"]


def variants(source):
    """The macro definitions of each variant that a source names."""
    line = re.search(r"^// Variants: (.*)$", source, re.MULTILINE)
    if line is None:
        raise SystemExit("a kernel source has no line `// Variants: ...`")
    groups = []
    for group in line.group(1).split():
        names, values = group.split("=")
        names = names.split(":")
        groups.append([list(zip(names, value.split(":"), strict=True)) for value in values.split("|")])
    return [sum(choice, []) for choice in itertools.product(*groups)]


def needed(source, kernels):
    """The text that a source says comes between common.cuh and itself: `// Needs: ...`."""
    line = re.search(r"^// Needs: (.*)$", source, re.MULTILINE)
    return "".join(open(os.path.join(kernels, name)).read() for name in line.group(1).split()) if line else ""


def targets(source):
    """The architectures that a source is for: all, unless it says `// Targets: ...`."""
    line = re.search(r"^// Targets: (.*)$", source, re.MULTILINE)
    return line.group(1).split() if line else ARCHITECTURES


class Compiler:
    """NVRTC, through its C interface."""

    def __init__(self, folder):
        # It asks for these by name; what is loaded is found.
        for builtins in glob.glob(os.path.join(folder, "libnvrtc-builtins.so.*")):
            ctypes.CDLL(builtins, mode=ctypes.RTLD_GLOBAL)
        self.library = ctypes.CDLL(sorted(glob.glob(os.path.join(folder, "libnvrtc.so.*")))[0])

    def version(self):
        major, minor = ctypes.c_int(), ctypes.c_int()
        self.library.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
        return f"{major.value}.{minor.value}"

    def compile(self, text, architecture):
        """(whether it compiled, what the compiler said)"""
        library, program = self.library, ctypes.c_void_p()
        library.nvrtcCreateProgram(ctypes.byref(program), text.encode(), b"kernel.cu", 0, None, None)
        options = [f"--gpu-architecture={architecture}", "--std=c++17", "--ptxas-options=-v"]
        array = (ctypes.c_char_p * len(options))(*[option.encode() for option in options])
        status = library.nvrtcCompileProgram(program, len(options), array)
        size = ctypes.c_size_t()
        library.nvrtcGetProgramLogSize(program, ctypes.byref(size))
        log = ctypes.create_string_buffer(size.value)
        library.nvrtcGetProgramLog(program, log)
        library.nvrtcDestroyProgram(ctypes.byref(program))
        return status == 0, log.value.decode(errors="replace")


def usage(log):
    """(entry, registers, static shared bytes, spilled bytes, stack bytes) of each kernel in a compiler's log."""
    rows, entry, spills, stack = [], None, 0, 0
    for line in log.splitlines():
        if match := re.search(r"Compiling entry function '([^']+)'", line):
            entry = match.group(1)
        if match := re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", line):
            stack, spills = int(match.group(1)), int(match.group(2)) + int(match.group(3))
        if match := re.search(r"Used (\d+) registers", line):
            shared = re.search(r"(\d+) bytes smem", line)
            rows.append((entry, int(match.group(1)), int(shared.group(1)) if shared else 0, spills, stack))
    return rows


def compile_one(task):
    name, definitions, text, architecture, folder, cache = task
    compiler = Compiler(folder)
    key = hashlib.sha256(f"{compiler.version()} {architecture} {text}".encode()).hexdigest()
    kept = os.path.join(cache, key)
    if os.path.exists(kept):
        return name, definitions, architecture, True, open(kept).read()
    passed, log = compiler.compile(text, architecture)
    if passed:
        os.makedirs(cache, exist_ok=True)
        with open(f"{kept}.{os.getpid()}", "w") as file:
            file.write(log)
        os.rename(f"{kept}.{os.getpid()}", kept)
    return name, definitions, architecture, passed, log


def main():
    kernels, folder, cache, *chosen = sys.argv[1:]
    started = time.time()
    common = open(os.path.join(kernels, "common.cuh")).read()
    tasks = []
    for path in sorted(glob.glob(os.path.join(kernels, "**", "*.cu"), recursive=True)):
        name = os.path.relpath(path, kernels)
        if chosen and name not in chosen:
            continue
        source = open(path).read()
        for definitions in variants(source):
            macros = "".join(f"#define {macro} {value}\n" for macro, value in definitions)
            label = " ".join(f"{macro}={value}" for macro, value in definitions)
            for architecture in targets(source):
                tasks.append((name, label, macros + common + needed(source, kernels) + source, architecture, folder, cache))
    failures = 0
    print(f"{'kernel':34} {'variant':46} {'target':7} registers  shared  spilled  stack")
    with multiprocessing.Pool(os.cpu_count()) as pool:
        for name, label, architecture, passed, log in pool.imap(compile_one, tasks):
            if not passed:
                failures += 1
                print(f"{name:34} {label:46} {architecture:7} DOES NOT COMPILE\n{log}")
            for entry, registers, shared, spilled, stack in usage(log):
                place = f"{name.removesuffix('.cu')}: {entry}" if entry != name.removesuffix(".cu") else entry
                print(f"{place:34} {label:46} {architecture:7} {registers:9} {shared:7} {spilled:8} {stack:6}")
            if "instructions are serialized" in log:
                failures += 1
                print(f"{name:34} {label:46} {architecture:7} HAS MULTIPLICATIONS THAT WAIT FOR EACH OTHER\n{log}")
            if passed and "warning" in log:
                print("\n".join(line for line in log.splitlines() if "ptxas" not in line))
    print(f"{len(tasks)} compilations, {failures} failed, {time.time() - started:.0f} s")
    sys.exit(1 if failures or not tasks else 0)


if __name__ == "__main__":
    main()
