"""Limits a program to the processor features of a level, so that it can run on other processors.

The levels are those of the x86-64 psABI. Libraries that choose code by the processor read variables
of the environment when they are loaded: ``GLIBC_TUNABLES`` (glibc), ``OPENSSL_ia32cap`` (OpenSSL),
``NPY_DISABLE_CPU_FEATURES`` (NumPy), ``OPENBLAS_CORETYPE`` (OpenBLAS), ``MKL_ENABLE_INSTRUCTIONS``
(MKL), ``ONEDNN_MAX_CPU_ISA`` (oneDNN), ``ATEN_CPU_CAPABILITY`` (PyTorch), ``GODEBUG`` (Go),
``JAVA_TOOL_OPTIONS`` (Java), ``DOTNET_EnableAVX`` and ``DOTNET_EnableAVX512F`` (.NET).
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Iterator, Mapping

from ..errors import Problem

_BASE = "fpu tsc cx8 cmov mmx fxsr sse sse2 syscall lm"
_V2 = "cx16 lahf_lm popcnt pni sse4_1 sse4_2 ssse3"
_V3 = "avx avx2 bmi1 bmi2 f16c fma abm movbe xsave"

ALSO = ("aes", "pclmulqdq", "xsave")
"""Features that are in no level, but not disabled: processors since 2011 have them, TLS is several
times slower without, and glibc saves registers with XSAVE. A start is refused on a processor that
lacks one of them."""

LEVELS: Mapping[str, frozenset[str]] = {
    "x86-64-v2": frozenset([*_BASE.split(), *_V2.split()]),
    "x86-64-v3": frozenset([*_BASE.split(), *_V2.split(), *_V3.split()]),
}
"""The features of each level, by their names in /proc/cpuinfo."""

_AVX512 = ("F", "BW", "CD", "DQ", "VL", "ER", "PF")
_BEYOND_V3 = ("XSAVEC", "RTM", *(f"AVX512{each}" for each in _AVX512))
_BEYOND_V2 = (
    *("AVX_Fast_Unaligned_Load", "AVX", "AVX2", "BMI1", "BMI2", "F16C", "FMA", "LZCNT", "MOVBE"),
    *_BEYOND_V3,
)

_NUMPY_BEYOND_V3 = (
    "AVX512F AVX512CD AVX512_KNL AVX512_KNM AVX512_SKX AVX512_CLX AVX512_CNL AVX512_ICL AVX512_SPR"
    " X86_V4"
)
_NUMPY_BEYOND_V2 = f"AVX F16C XOP FMA4 FMA3 AVX2 X86_V3 {_NUMPY_BEYOND_V3}"


def _openssl(first: Iterable[int], second: Iterable[int]) -> str:
    """The value that clears bits of CPUID's leaf 1 (edx, ecx) and leaf 7 (ebx, ecx)."""
    return ":".join(f"~{sum(1 << bit for bit in bits):#x}" for bits in (first, second))


_SSL_BEYOND_V3 = (16, 17, 18, 19, 21, 26, 27, 28, 29, 30, 31, 33, 38, 40, 41, 42, 43, 44, 46)
"""AVX-512, RDSEED, ADX, SHA, GFNI, VAES, VPCLMULQDQ."""

_JAVA = "-XX:+IgnoreUnrecognizedVMOptions -XX:-UseSHA"

_VARIABLES: Mapping[str, Mapping[str, str]] = {
    "x86-64-v2": {
        "GLIBC_TUNABLES": "glibc.cpu.hwcaps=" + ",".join(f"-{each}" for each in _BEYOND_V2),
        # FMA, MOVBE, XSAVE, OSXSAVE, AVX, F16C, RDRAND; BMI1, AVX2, BMI2.
        "OPENSSL_ia32cap": _openssl((44, 54, 58, 59, 60, 61, 62), (3, 5, 8, *_SSL_BEYOND_V3)),
        "NPY_DISABLE_CPU_FEATURES": _NUMPY_BEYOND_V2,
        "OPENBLAS_CORETYPE": "Nehalem",
        "MKL_ENABLE_INSTRUCTIONS": "SSE4_2",
        "ONEDNN_MAX_CPU_ISA": "SSE41",
        "ATEN_CPU_CAPABILITY": "default",
        "GODEBUG": "cpu.avx=off,cpu.avx2=off,cpu.bmi1=off,cpu.bmi2=off,cpu.fma=off,cpu.adx=off",
        "JAVA_TOOL_OPTIONS": f"{_JAVA} -XX:UseAVX=0 -XX:-UseBMI1Instructions "
        "-XX:-UseBMI2Instructions -XX:-UseFMA -XX:-UseCountLeadingZerosInstruction "
        "-XX:-UseCountTrailingZerosInstruction",
        "DOTNET_EnableAVX": "0",
    },
    "x86-64-v3": {
        "GLIBC_TUNABLES": "glibc.cpu.hwcaps=" + ",".join(f"-{each}" for each in _BEYOND_V3),
        "OPENSSL_ia32cap": _openssl((62,), _SSL_BEYOND_V3),
        "NPY_DISABLE_CPU_FEATURES": _NUMPY_BEYOND_V3,
        "OPENBLAS_CORETYPE": "Haswell",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "ATEN_CPU_CAPABILITY": "avx2",
        "GODEBUG": "cpu.adx=off",
        "JAVA_TOOL_OPTIONS": f"{_JAVA} -XX:UseAVX=2",
        "DOTNET_EnableAVX512F": "0",
    },
}

_JOINED = {"GLIBC_TUNABLES": ":", "GODEBUG": ",", "JAVA_TOOL_OPTIONS": " "}
"""The separator between the present value of a variable and the added one."""


def level_problems(level: object, flags: frozenset[str]) -> Iterator[Problem]:
    """Problems of the argument ``processor`` on a machine with these features."""
    if not isinstance(level, str) or level not in LEVELS:
        yield Problem("processor", level, f"{', '.join(LEVELS)} are accepted")
    elif platform.machine() != "x86_64":
        yield Problem("processor", level, f"this machine is {platform.machine()}")
    elif lacking := LEVELS[level] - flags:
        rule = f"the processor of this machine lacks {' '.join(sorted(lacking))}"
        yield Problem("processor", level, rule)


def environment(level: str, env: Mapping[str, str] | None) -> dict[str, str]:
    """A command's environment (None: that of this process) with the variables of a level.

    They replace existing variables, except lists, to which they are appended.
    """
    result = dict(os.environ if env is None else env)
    for name, value in _VARIABLES[level].items():
        if name in _JOINED and result.get(name):
            result[name] += _JOINED[name] + value
        else:
            result[name] = value
    return result


def features(level: str, flags: Iterable[str]) -> tuple[str, ...]:
    """The processor features that a program with these variables can use."""
    return tuple(sorted(LEVELS[level].union(ALSO).intersection(flags)))
