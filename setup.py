"""Builds the native engine and the sweep over HTML where there is a C++ compiler; openafm can do without.

Everything else is said in pyproject.toml. `python setup.py build_ext --inplace` builds it in a checkout.
"""

import os
import platform
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nanobind
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

NATIVE = Path("native")
AVX2 = ["-mavx2", "-mfma", "-mf16c"]
AVX512 = [*AVX2, "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512vnni"]
X86 = {
    "avx2.cpp": AVX2,
    "avxvnni.cpp": [*AVX2, "-mavxvnni"],
    "avx512.cpp": AVX512,
    "avx512vbmi.cpp": [*AVX512, "-mavx512vbmi"],
}
ARM = {"neon.cpp": ["-march=armv8.2-a+dotprod+fp16"]}
FLAGS = {"x86_64": X86, "AMD64": X86, "aarch64": ARM, "arm64": ARM}.get(platform.machine(), {})
COMMON = ["-Wno-maybe-uninitialized", "-std=c++20", "-O3", "-fvisibility=hidden", "-fno-math-errno", "-g0"]
EXACT = {"palettize.cpp": ["-ffp-contract=off"]}  # equal to numpy's bytes, which fuses nothing
WITHOUT = """
openafm: {name} was not built ({error}).
openafm works without: `chat` and `serve` use torch, which is several times slower, and extraction takes twice the time.
To get it, install a C++20 compiler (Debian: apt-get install g++ python3-dev) and run pip install again.
"""


class BuildNative(build_ext):
    """Each instruction set's file has flags of its own; a set that the compiler does not know is left out."""

    def build_extension(self, ext: Extension) -> None:
        """Compile file by file and link; on failure say what is lost, and go on."""
        try:
            with ThreadPoolExecutor(os.cpu_count()) as threads:
                objects = list(threads.map(lambda source: self._compile(Path(source), ext), ext.sources))
            target = self.get_ext_fullpath(ext.name)
            Path(target).parent.mkdir(parents=True, exist_ok=True)
            self.compiler.link_shared_object(objects, target, extra_postargs=["-pthread"], target_lang="c++")
        except Exception as error:  # whatever it is, the rest of openafm does not depend on it
            print(WITHOUT.format(name=ext.name, error=error), file=sys.stderr)

    def _compile(self, source: Path, ext: Extension) -> str:
        def once(flags: list[str]) -> str:
            return self.compiler.compile(
                [str(source)], self.build_temp, include_dirs=ext.include_dirs, extra_postargs=[*COMMON, *flags]
            )[0]

        try:
            return once(FLAGS.get(source.name, EXACT.get(source.name, [])))
        except Exception:
            if source.name not in FLAGS:
                raise
            return once([])  # compiles to "not there"

    def get_outputs(self) -> list[str]:
        """Only what was built."""
        return [path for path in super().get_outputs() if Path(path).exists()]


bindings = Path(nanobind.source_dir())
setup(
    ext_modules=[
        Extension(
            "openafm.engine._native",
            sources=[
                *sorted(str(path) for path in NATIVE.glob("*.cpp") if path.stem != "selftest"),
                str(bindings / "nb_combined.cpp"),
            ],
            include_dirs=[str(NATIVE), nanobind.include_dir(), str(bindings.parent / "ext" / "robin_map" / "include")],
            optional=True,
        ),
        Extension("openafm.data._blocks", sources=[str(NATIVE / "html" / "blocks.cpp")], optional=True),
    ],
    cmdclass={"build_ext": BuildNative},
)
