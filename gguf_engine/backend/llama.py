"""
LlamaBackend: llama.cpp behind the `Backend` protocol. The only file that imports llama_cpp.

Every pointer, callback and C structure of llama.cpp lives and dies here. It is called from one
thread; `abort` alone may come from any.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from gguf_engine.backend._native import ffi, lib
from gguf_engine.backend.base import Batch, Bytes, ForwardAbortedError, OutOfCellsError, Placement, Rows
from gguf_engine.backend.devices import Device, DeviceChoice, choose_for, device_handle, read_devices
from gguf_engine.backend.llama_embedder import LlamaEmbedder
from gguf_engine.backend.log import LogTail, read_placement
from gguf_engine.backend.native_batch import NativeBatch
from gguf_engine.backend.processors import usable_processors
from gguf_engine.backend.threads import ThreadGovernor, choose_threads, make_governor
from gguf_engine.errors import BackendError, EngineClosedError, ModelLoadError, OptionError
from gguf_engine.params import MAX_N_CTX_BY_DEFAULT, EngineParams, PresetName, split_adapter

# libgomp spins 30 billion times at a barrier by default, which takes a busy neighbour's core away
# from itself: decoding fell to a tenth. A bounded spin keeps the idle speed.
_SPIN = {"GOMP_SPINCOUNT": "1000"}
_USERS_SPIN = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")

_FLASH_ATTENTION = {"auto": -1, "off": 0, "on": 1}  # enum llama_flash_attn_type
_GGML_TYPES = {"f16": 1, "q8_0": 8, "q4_0": 2}
_SPLIT_MODES = {"layer": 1, "row": 2}  # enum llama_split_mode
MAX_N_UBATCH_ON_CPU = 256
# Requests at once, by preset. On a CPU llama.cpp computes the rows of K-quants by 16: a pass over 16 takes
# hardly longer than one over 8, and one over 32 half as long again.
N_SLOTS: dict[PresetName | None, int] = {"latency": 16, None: 16, "throughput": 32}


@contextlib.contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    """Set variables that libraries read while they load, and leave the process as it was."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update({name: value for name, value in values.items() if before[name] is None})
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)


def _load_library() -> Any:
    spin = {} if any(name in os.environ for name in _USERS_SPIN) else _SPIN
    # ggml reads this one when it aborts, and else starts a debugger for a backtrace: it has to stay.
    os.environ.setdefault("GGML_NO_BACKTRACE", "1")
    with _environment(spin):
        import llama_cpp.llama_cpp as library

        library.llama_backend_init()
    return library


_llama = _load_library()
_validate_row_data = _llama._lib["ggml_validate_row_data"]  # what check_tensors calls
_validate_row_data.restype = ctypes.c_bool
_validate_row_data.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t)
_IS_SET = int(ffi.cast("uintptr_t", ffi.addressof(lib, "ge_is_set")))
_log = LogTail()
# A callback that is collected while C still holds it is a crash: these live as long as the module.
_log_callback = _llama.llama_log_callback(_log.write)
_llama.llama_log_set(_log_callback, None)


_threaded_in: list[int] = []  # the process that has made a context with threads


def _claim_threads(n_threads: int) -> None:
    """Refuse threads in a fork of a process that had some: OpenMP would wait for those for ever."""
    pid = os.getpid()
    if n_threads > 1 and _threaded_in not in ([], [pid]):
        allowed = f"1 in a process that was forked from one with a loaded model ({_threaded_in[0]})"
        help_ = "start the process afresh (multiprocessing's 'spawn'), or load with isolation='process'"
        raise OptionError("n_threads", n_threads, allowed, help_)
    if n_threads > 1:
        _threaded_in[:] = [pid]


def list_devices() -> tuple[Device, ...]:
    """Return the devices of this machine that this llama.cpp build can use."""
    return read_devices(_llama._lib)


def library_versions() -> dict[str, str]:
    """Return the versions and processor features of the llama.cpp build in use."""
    import llama_cpp

    return {
        "llama_cpp_python": llama_cpp.__version__,
        "llama_cpp": _llama.llama_version().decode(),
        "system_info": _llama.llama_print_system_info().decode().strip(),
    }


def has_finite_numbers(type_id: int, blocks: memoryview) -> bool:
    """
    Return whether ggml finds no NaN, no infinity and no broken scale in whole blocks of a tensor.

    Args:
        type_id: The tensor's type, one of enum ggml_type.
        blocks: Writable memory, as ctypes wants it; it is not written to.
    """
    address = ctypes.addressof(ctypes.c_char.from_buffer(blocks))
    return bool(_validate_row_data(type_id, address, len(blocks)))


def _guarded(
    progress: Callable[[float], bool] | None, raised: list[BaseException]
) -> Callable[[float, object], bool]:
    """Keep an exception of `progress` for later: one that C code sees is lost."""

    def callback(done: float, _: object) -> bool:
        try:
            return progress is None or progress(done)
        except BaseException as error:  # noqa: BLE001 - raised again when llama.cpp has returned
            raised.append(error)
            return False

    return callback


class LlamaBackend:
    """
    A GGUF file loaded into llama.cpp.

    Args:
        path: The file; its checks are the loader's business.
        params: Where and how large; see EngineParams.
        progress: Called with 0..1 while weights load; returning False ends the load.
        start_threads: How many threads decode and prefill begin with, where they adapt.
        note: Added to the reason of the placement.

    Raises:
        DeviceError: `params.device` or one of `params.devices` is not there.
        OptionError: `params.n_ctx` or `n_cells` does not fit the model.
        ModelLoadError: llama.cpp refused the file or an adapter, or the load was ended.
    """

    def __init__(
        self,
        path: Path,
        params: EngineParams,
        progress: Callable[[float], bool] | None = None,
        *,
        start_threads: tuple[int, int] | None = None,
        note: str = "",
    ) -> None:
        self._abort_flag = ctypes.c_int32(0)
        self._abort_callback = _llama.ggml_abort_callback(_IS_SET)
        self._governor: ThreadGovernor | None = None
        self._model: int | None = None
        self._context: int | None = None
        choice = choose_for(params, list_devices())
        with _log.capture() as lines:
            try:
                self._load_model(path, params, choice, progress)
                self._scales = self._load_adapters(params)  # the context makes room for them
                self._make_context(path, params, choice, start_threads)
                self._use_adapters(self._context)
            except BaseException:
                self.close()
                raise
        n_layers = int(_llama.llama_model_n_layer(self._model))
        self.placement: Placement | None = read_placement(
            lines,
            choice.name,
            choice.reason + note,
            n_layers,
            n_threads=self._n_threads,
            adapters=self._scales,
            kv_cache_type=params.kv_cache_type,
            flash_attention=params.flash_attention,
        )

    def _load_model(
        self,
        path: Path,
        params: EngineParams,
        choice: DeviceChoice,
        progress: Callable[[float], bool] | None,
    ) -> None:
        model_params = _llama.llama_model_default_params()
        on_cpu = choice.device.kind == "cpu"
        handles = [] if on_cpu else [device_handle(_llama._lib, each.index) for each in choice.devices]
        device_list = (ctypes.c_void_p * (len(handles) + 1))(*handles, None)  # NULL-terminated
        model_params.devices = ctypes.cast(device_list, ctypes.c_void_p)
        model_params.split_mode = _SPLIT_MODES[params.split_mode]
        n_gpu_layers = params.n_gpu_layers
        if on_cpu and n_gpu_layers:
            raise OptionError("n_gpu_layers", n_gpu_layers, "0 or None on cpu", choice.reason)
        model_params.n_gpu_layers = 0 if on_cpu else -1 if n_gpu_layers is None else n_gpu_layers
        model_params.load_mode = (
            _llama.LLAMA_LOAD_MODE_MMAP if params.use_mmap else _llama.LLAMA_LOAD_MODE_NONE
        )
        model_params.use_extra_bufts = bool(params.repack)
        raised: list[BaseException] = []
        callback = _llama.llama_progress_callback(_guarded(progress, raised))
        model_params.progress_callback = callback
        self._model = _llama.llama_model_load_from_file(os.fsencode(path), model_params)
        if raised:
            raise raised[0]
        if not self._model:
            raise ModelLoadError(str(path), "it refused the file or ran out of memory", _log.errors())

    def _load_adapters(self, params: EngineParams) -> dict[str, float]:
        """Load the adapters; return the scale of each by its path. The model owns and frees them."""
        scales: dict[str, float] = {}
        self._adapters: list[Any] = []
        for text in params.lora:
            path, scale = split_adapter(text)
            adapter = _llama.llama_adapter_lora_init(self._model, os.fsencode(path))
            if not adapter:
                raise ModelLoadError(path, "it refused the LoRA adapter", _log.errors())
            self._adapters.append(adapter)
            scales[path] = scale
        if len(scales) < len(self._adapters):
            raise OptionError("lora", params.lora, "each adapter once", "add up their scales instead")
        return scales

    def _use_adapters(self, context: int | None) -> None:
        n = len(self._adapters)
        handles = (_llama.llama_adapter_lora_p_ctypes * n)(*self._adapters)
        scales = (ctypes.c_float * n)(*self._scales.values())
        status = n and _llama.llama_set_adapters_lora(context, handles, n, scales)
        if status:
            names = ", ".join(self._scales)
            raise BackendError(status, f"llama.cpp could not use the LoRA adapters {names}")

    def _make_context(
        self, path: Path, params: EngineParams, choice: DeviceChoice, start: tuple[int, int] | None
    ) -> None:
        self.n_ctx_train = int(_llama.llama_model_n_ctx_train(self._model))
        self.n_ctx = params.n_ctx or min(self.n_ctx_train, MAX_N_CTX_BY_DEFAULT)
        if self.n_ctx > self.n_ctx_train:
            raise OptionError(
                "n_ctx", self.n_ctx, f"8..{self.n_ctx_train}, what {path.name} was trained for"
            )
        self.n_cells = params.n_cells or self.n_ctx
        if self.n_cells < self.n_ctx:
            raise OptionError("n_cells", self.n_cells, f"n_ctx ({self.n_ctx}) or more")
        self.n_slots = params.n_slots or min(N_SLOTS[params.preset], self.n_cells)
        # llama.cpp cuts a batch to the cells there are, and aborts when it does not hold all slots.
        if self.n_slots > self.n_cells:
            raise OptionError("n_slots", self.n_slots, f"1..{self.n_cells}, the KV cells there are")
        n_bytes = int(_llama.llama_model_size(self._model))
        self._n_threads = choose_threads(params, usable_processors(), n_bytes)
        _claim_threads(max(self._n_threads))
        # On a GPU a pass has not ended when llama_decode returns: its time would say nothing.
        if choice.device.kind == "cpu":
            self._governor = make_governor(params, self._n_threads, start, self.n_cells)
        context_params = _llama.llama_context_default_params()
        # llama.cpp rounds up; what is over the n_cells asked for is not used.
        context_params.n_ctx = self.n_cells
        context_params.n_batch = params.n_batch
        # ggml sees a cancel between two products: one of 512 rows can take 0.4 s, 256 rows cost nothing.
        widest = MAX_N_UBATCH_ON_CPU if choice.device.kind == "cpu" else params.n_batch
        context_params.n_ubatch = params.n_ubatch or min(params.n_batch, widest)
        context_params.n_seq_max = self.n_slots
        # One cache for all slots: a prefix is shared without a copy, and a long request may use what short
        # ones leave. A part for each slot would spare attention the others' cells, and need n_slots times
        # as many: 8 slots of 512 gained 4 % with Phi-3-mini's shape, 16 of 256 a third with haiku's.
        context_params.kv_unified = True
        context_params.n_threads, context_params.n_threads_batch = self._n_threads
        context_params.type_k = context_params.type_v = _GGML_TYPES[params.kv_cache_type]
        context_params.flash_attn_type = _FLASH_ATTENTION[params.flash_attention]
        context_params.offload_kqv = context_params.op_offload = choice.device.kind != "cpu"
        context_params.abort_callback = self._abort_callback
        context_params.abort_callback_data = ctypes.addressof(self._abort_flag)
        context_params.no_perf = True
        self._context_params = context_params
        self._context = _llama.llama_init_from_model(self._model, context_params)
        if not self._context:
            what = f"it could not make a context of {self.n_cells} KV cells"
            raise ModelLoadError(str(path), what, _log.errors())
        # llama.cpp makes it smaller for a small context, and aborts the process on a larger batch.
        self.n_batch = int(_llama.llama_n_batch(self._context))
        self._vocab = _llama.llama_model_get_vocab(self._model)
        self.n_vocab = int(_llama.llama_vocab_n_tokens(self._vocab))
        self._memory = _llama.llama_get_memory(self._context)
        self._bind()

    def _bind(self) -> None:
        """Look up what every pass calls."""
        self._batch = NativeBatch(_llama, self.n_batch)
        self._decode = _llama.llama_decode
        self._get_logits = _llama._lib["llama_get_logits"]  # a fresh object: restype is ours
        self._get_logits.restype = ctypes.c_void_p
        self._get_logits.argtypes = (ctypes.c_void_p,)
        self._logits_address = 0
        self._logits: Rows = np.empty((0, self.n_vocab), np.float32)

    def forward(self, batch: Batch) -> Rows:
        """See Backend.forward."""
        self._check_open()
        n_tokens = len(batch)
        native = self._batch.fill(batch)
        governor = self._governor
        if governor is not None:
            n_threads = governor.n_threads(n_tokens)
            # llama.cpp may end a pass over several tokens with one over a single one.
            one, several = self._n_threads
            self.use_threads(*((n_threads, several) if n_tokens == 1 else (one, n_threads)))
            begin = time.perf_counter()
        status = self._decode(self._context, native)
        # Read the code before the logits: after a failure the old row is still there.
        if status:
            self._raise(status, n_tokens)
        if governor is not None:
            governor.record(n_tokens, time.perf_counter() - begin)
        self._abort_flag.value = 0
        return self._rows(batch.n_outputs)

    def use_threads(self, n_threads: int, n_threads_batch: int) -> None:
        """Compute the passes from now on with so many threads: over one token, and over several."""
        if (n_threads, n_threads_batch) != self._n_threads:
            _llama.llama_set_n_threads(self._context, n_threads, n_threads_batch)
            self._n_threads = (n_threads, n_threads_batch)

    def _rows(self, n_outputs: int) -> Rows:
        address = self._get_logits(self._context)
        if address != self._logits_address or n_outputs > len(self._logits):
            pointer = ctypes.cast(address, ctypes.POINTER(ctypes.c_float))
            self._logits = np.ctypeslib.as_array(pointer, (n_outputs, self.n_vocab))
            self._logits_address = address
        return self._logits

    def _raise(self, status: int, n_tokens: int) -> None:
        if status == 1:
            raise OutOfCellsError
        if status == 2:
            self._abort_flag.value = 0
            raise ForwardAbortedError
        raise BackendError(status, f"llama.cpp failed on a batch of {n_tokens} tokens: {_log.errors()}")

    def abort(self) -> None:
        """See Backend.abort."""
        self._abort_flag.value = 1

    def truncate(self, slot: int, length: int) -> bool:
        """See Backend.truncate."""
        self._check_open()
        return bool(_llama.llama_memory_seq_rm(self._memory, slot, length, -1))

    def copy(self, source: int, target: int, length: int) -> bool:
        """See Backend.copy. The cells are shared: the cache is unified."""
        self._check_open()
        if _llama.llama_model_is_recurrent(self._model) or _llama.llama_model_is_hybrid(self._model):
            return False
        _llama.llama_memory_seq_cp(self._memory, source, target, 0, length)
        return True

    def save(self, slot: int) -> memoryview:
        """See Backend.save."""
        self._check_open()
        size = int(_llama.llama_state_seq_get_size(self._context, slot))
        buffer = np.empty(size, np.uint8)  # not zeroed first: it may be hundreds of megabytes
        pointer = buffer.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
        written = _llama.llama_state_seq_get_data(self._context, pointer, size, slot)
        return buffer.data[:written]

    def load(self, slot: int, state: Bytes) -> None:
        """See Backend.load."""
        self._check_open()
        pointer = np.frombuffer(state, np.uint8).ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
        if not _llama.llama_state_seq_set_data(self._context, pointer, len(state), slot):
            raise BackendError(0, f"a state of {len(state)} bytes does not fit this model")

    def embedder(self, n_cells: int) -> LlamaEmbedder:
        """See Backend.embedder."""
        self._check_open()
        assert self._model is not None
        return LlamaEmbedder(
            _llama,
            self._model,
            self._context_params,
            is_set=_IS_SET,
            n_cells=n_cells,
            is_whole=not self._memory or not _llama.llama_get_causal_attn(self._context),
            n_threads=lambda: self._n_threads,
            on_made=self._use_adapters,
            errors=_log.errors,
        )

    def end_ids(self, candidates: Iterable[int]) -> frozenset[int]:
        """See Backend.end_ids."""
        self._check_open()
        is_end = _llama.llama_vocab_is_eog
        return frozenset(i for i in candidates if 0 <= i < self.n_vocab and is_end(self._vocab, i))

    def _check_open(self) -> None:
        if self._context is None:
            raise EngineClosedError("this backend is closed; load the model again")

    def close(self) -> None:
        """Free the context, then the model: llama.cpp crashes in the other order."""
        context, self._context = self._context, None
        model, self._model = self._model, None
        if context:
            _llama.llama_free(context)
        if model:
            _llama.llama_model_free(model)
