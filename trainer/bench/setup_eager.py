#!/usr/bin/env python3
"""Makes a Python environment in which `eager.py` runs: PyTorch from its wheel, without the 2.5 GB of CUDA libraries.

The Linux wheel on PyPI is linked against CUDA, cuDNN, NCCL and cuFile, which a CPU run never calls. This script puts
the wheel into a virtual environment and, in place of those libraries, tiny ones that define the symbols which the loader
asks for; torch.cuda.is_available() is then False, and torch.distributed, whose set-up touches NCCL's classes, is
switched off. CPU kernels are untouched: they come from the same libtorch_cpu.so that consilium-trainer links.

Needs: the Python version of the wheel, gcc, nm, and libcudart.so.13 with libcupti.so.13 (in the libtorch folder).
"""

import argparse
import pathlib
import shutil
import subprocess
import sys

PACKAGES = ["typing_extensions", "filelock", "sympy", "networkx", "jinja2", "fsspec", "numpy", "safetensors"]
# Libraries that libtorch_python.so names and that are replaced; the first gets all missing symbols.
STUBS = ["libtorch_cuda.so", "libcudnn.so.9", "libcufile.so.0", "libnccl.so.2"]
# Present for real; what they define is not missing.
SYSTEM = ["libc.so.6", "libm.so.6", "libstdc++.so.6", "libgcc_s.so.1", "libpthread.so.0", "libdl.so.2"]
PATCH = '''    # No c10d without NCCL (see setup_eager.py).
    import torch._C as _c
    for _n in ("_c10d_init", "_rpc_init", "_dist_autograd_init", "_faulty_agent_init"):
        hasattr(_c, _n) and delattr(_c, _n)
    del _c, _n
'''
MARK = "    from torch._C import *  # noqa: F403\n"


def symbols(file, option):
    out = subprocess.run(["nm", "-D", option, str(file)], capture_output=True, text=True, check=False).stdout
    return [line.split()[-2:] for line in out.splitlines()]


def missing(lib, interpreter):
    """Symbols that libtorch_python.so needs and that no library defines."""
    paths = [lib / name for name in ["libtorch_cpu.so", "libc10.so", "libc10_cuda.so", "libshm.so", "libgomp.so.1",
                                     "libcudart.so.13"]]
    for name in SYSTEM:
        found = subprocess.run(["gcc", f"-print-file-name={name}"], capture_output=True, text=True, check=True).stdout
        paths.append(pathlib.Path(found.strip()))
    paths.append(pathlib.Path(interpreter))
    defined = {entry[-1].split("@")[0] for path in paths for entry in symbols(path, "--defined-only")}
    wanted = symbols(lib / "libtorch_python.so", "--undefined-only")
    return sorted({name.split("@")[0] for kind, name in wanted if kind == "U"} - defined)


def assembly(names):
    """Type descriptors get a name, tables zeros, and functions return 0; the one whose result is written to at load
    (c10d::get_gil_checker) returns a place to write."""
    data, text = [".section .data", ".Lscratch: .zero 256"], [".text"]
    for index, name in enumerate(names):
        if name.startswith("_ZTI"):
            data += [f".globl {name}", f".type {name},@object", ".balign 16",
                     f"{name}: .quad _ZTVN10__cxxabiv117__class_type_infoE+16, .Lname{index}",
                     f'.Lname{index}: .asciz "{name[4:]}"']
        elif name.startswith("_ZTV"):
            data += [f".globl {name}", f".type {name},@object", ".balign 16", f"{name}: .zero 1024"]
        else:
            body = "lea .Lscratch(%rip),%rax" if "get_gil_checker" in name else "xor %eax,%eax"
            text += [f".globl {name}", f".type {name},@function", f"{name}: {body}", "ret"]
    return "\n".join(data + text + ['.section .note.GNU-stack,"",@progbits', ""])


def link(lib, name, *inputs, source="/dev/null"):
    language = ["-x", "c"] if source == "/dev/null" else []
    subprocess.run(["gcc", "-shared", "-nostdlib", f"-Wl,-soname,{name}", "-o", str(lib / name), *inputs, *language,
                    source], check=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wheel", type=pathlib.Path, required=True, help="torch-2.13.0-cp3XX-…-x86_64.whl")
    parser.add_argument("--libtorch", type=pathlib.Path, required=True, help="folder with lib/libcudart.so.13")
    parser.add_argument("--venv", type=pathlib.Path, required=True, help="where to make the environment")
    args = parser.parse_args()
    tag = f"cp{sys.version_info.major}{sys.version_info.minor}"
    if f"-{tag}-" not in args.wheel.name:
        sys.exit(f"{args.wheel.name} is not for this Python ({tag}); run this script with the wheel's Python")
    python = args.venv / "bin" / "python"
    done = args.venv / "eager-ready"
    if done.exists():
        return print(python)
    subprocess.run([sys.executable, "-m", "venv", str(args.venv)], check=True)
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "--no-deps", str(args.wheel)], check=True)
    subprocess.run([*pip, *PACKAGES], check=True)
    package = next(args.venv.glob("lib/python3*/site-packages/torch"))
    lib = package / "lib"
    for name in ["libcudart.so.13", "libcupti.so.13"]:
        shutil.copy(args.libtorch / "lib" / name, lib / name)
    for name in ["libtorch_cuda_linalg.so", "libtorch_nvshmem.so"]:
        (lib / name).unlink(missing_ok=True)
    source = lib / "stubs.s"
    source.write_text(assembly(missing(lib, python.resolve())))
    link(lib, STUBS[0], source=str(source))
    for name in STUBS[1:]:
        link(lib, name)
    link(lib, "libtorch.so", "-Wl,--no-as-needed", f"-L{lib}", "-ltorch_cpu")
    init = package / "__init__.py"
    text = init.read_text()
    before, mark, after = text.rpartition(MARK)
    if not mark:
        sys.exit(f"{init}: not the torch that this script knows (2.13.0)")
    init.write_text(before + mark + PATCH + after)
    done.touch()
    print(python)


if __name__ == "__main__":
    main()
