# Everything else is in pyproject.toml: setuptools reads cffi modules and wheel tags only from here.
from setuptools import setup

setup(
    cffi_modules=["csrc/build_native.py:sampling", "csrc/build_native.py:backend"],
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
