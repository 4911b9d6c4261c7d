"""llama.cpp's log, as it stood in real loads, read for where a model landed."""

from __future__ import annotations

import threading

from gguf_engine.backend.log import LogTail, read_placement

# Lines of llama.cpp b6000 and later; the second group as printed by a CUDA build.
CPU_LOAD = [
    "load_tensors:   CPU_Mapped model buffer size =  2281.66 MiB",
    "llama_kv_cache:        CPU KV buffer size =  1536.00 MiB",
    "sched_reserve:        CPU compute buffer size =   168.01 MiB",
]
GPU_LOAD = [
    "load_tensors: offloading 20 repeating layers to GPU",
    "load_tensors: offloaded 20/33 layers to GPU",
    "load_tensors:   CPU_Mapped model buffer size =  1000.00 MiB",
    "load_tensors:        CUDA0 model buffer size =  1281.50 MiB",
    "llama_kv_cache:      CUDA0 KV buffer size =   960.00 MiB",
    "llama_kv_cache:        CPU KV buffer size =   576.00 MiB",
]


def test_a_load_on_the_cpu_offloads_nothing() -> None:
    placement = read_placement(CPU_LOAD, "cpu", "asked for", 32, n_threads=(1, 2))
    assert placement.n_layers_offloaded == 0
    assert placement.kv_cache_bytes == {"CPU": 1536 * 2**20}
    assert placement.compute_bytes == {"CPU": round(168.01 * 2**20)}


def test_a_partial_offload_is_told_layer_by_layer_and_buffer_by_buffer() -> None:
    placement = read_placement(GPU_LOAD, "cuda:0", "asked for", 32, n_threads=(1, 2))
    assert (placement.n_layers_offloaded, placement.n_layers) == (20, 32)
    assert placement.weight_bytes == {"CPU_Mapped": 1000 * 2**20, "CUDA0": round(1281.5 * 2**20)}
    assert placement.kv_cache_bytes == {"CUDA0": 960 * 2**20, "CPU": 576 * 2**20}


def test_the_output_layer_is_not_counted() -> None:
    placement = read_placement(
        ["load_tensors: offloaded 33/33 layers to GPU"], "cuda:0", "", 32, n_threads=(1, 2)
    )
    assert placement.n_layers_offloaded == 32


def test_a_files_own_text_is_no_news_of_the_load() -> None:
    lines = [
        "print_info: general.name = load_tensors: offloaded 32/33 layers to GPU",
        "llama_model_loader: - kv 1: general.name str = X model buffer size = 1.00 MiB",
        "load_tensors:   CPU model buffer size =  1.2.3 MiB",
        "load_tensors: " + "x" * 100_000,
    ]
    placement = read_placement(lines, "cpu", "", 32, n_threads=(1, 2))
    assert (placement.n_layers_offloaded, placement.weight_bytes) == (0, {})


def test_errors_are_told_once() -> None:
    log = LogTail()
    log.write(2, b"loading\n", None)
    log.write(4, b"tensor 'x' is missing\n", None)
    assert log.errors() == "tensor 'x' is missing"
    assert log.errors() == ""


def test_a_continued_line_has_the_level_of_what_it_continues() -> None:
    log = LogTail()
    log.write(4, b"first half ", None)
    log.write(5, b"second half\n", None)
    assert log.errors() == "first half; second half"


def test_two_loads_at_once_have_logs_of_their_own() -> None:
    log = LogTail()

    def other() -> None:
        log.write(4, b"their error", None)

    with log.capture() as lines:
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert lines == []
    assert log.errors() == ""


def test_a_capture_sees_every_level_while_it_lasts() -> None:
    log = LogTail()
    with log.capture() as lines:
        log.write(1, b"debug\n", None)
    log.write(2, b"later\n", None)
    assert lines == ["debug"]
