"""The module that csrc/build_native.py makes; csrc/sampler.h says what is in it."""

from typing import Any

ffi: Any
lib: Any
