"""A model's name and options → what an LLM is made of, found, fetched and checked."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from gguf_engine.errors import ModelNotFoundError, OptionError
from gguf_engine.params import MAX_N_CTX_BY_DEFAULT, EngineParams, split_adapter
from gguf_engine.text.chat import ChatTemplate
from gguf_engine.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from gguf_engine.backend.base import Backend
    from gguf_engine.engine.prefix_store import PrefixCache
    from gguf_engine.engine.speculative import DraftMaker
    from gguf_engine.engine.state import StateOrigin
    from gguf_engine.loader.gguf import GGUFFile
    from gguf_engine.loader.resolve import ModelFiles
    from gguf_engine.params import PresetName

Stage = Literal["download", "check", "load"]
Settle = Callable[[EngineParams, Mapping[str, Any]], EngineParams]
Progress = Callable[[Stage, str, int, int | None], None]
"""Called with a stage, what is worked on, the bytes done and the bytes in all (None: not known)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """
    A model that is here and checked, not loaded yet.

    Attributes:
        make_backend: Loads it; can cross to another process.
        preset: As in EngineParams.
        prefix_cache: Where its system prompts are kept on disk; None for nowhere.
        tokenizer, template: Its text side; None when no template was passed.
        metadata: Of the GGUF.
        is_known_family: Its tensors were checked one by one; a family without such rules may kill.
        on_load: Takes the share that is loaded, 0..1.
        on_killed: Remembers that the model kills whoever loads it.
        state_origin: Takes n_vocab and n_ctx, returns what saved states belong to.
        draft: Where guesses at the next ids come from; None for none.
    """

    make_backend: Callable[..., Backend]
    preset: PresetName | None
    prefix_cache: PrefixCache | None
    tokenizer: Tokenizer
    template: ChatTemplate | None
    metadata: Mapping[str, Any]
    is_known_family: bool
    on_load: Callable[[float], object]
    on_killed: Callable[[str], object]
    state_origin: Callable[[int, int], StateOrigin]
    draft: DraftMaker | None = None


def open_model(
    model: str | Path,
    params: EngineParams,
    *,
    revision: str | None,
    tokenizer: str | Path | None,
    chat_template: str | Path | None,
    cache_dir: str | Path | None,
    endpoint: str | None,
    token: str | None,
    offline: bool,
    lock: str | Path | None,
    preflight: bool,
    progress: Progress | None,
) -> Opened:
    """Find, fetch and check a model; arguments and errors are those of `LLM.load`."""
    from gguf_engine.backend.devices import choose_for
    from gguf_engine.backend.llama import LlamaBackend, list_devices
    from gguf_engine.engine.identity import prefix_cache_for, state_origin
    from gguf_engine.loader.catalog import part_names
    from gguf_engine.loader.preflight import has_full_rules
    from gguf_engine.loader.resolve import resolve_model
    from gguf_engine.tuned import tuned_options

    if not isinstance(model, (str, Path)):
        raise OptionError("model", model, "a name or a path")
    if lock is not None and tokenizer is not None:
        raise OptionError("tokenizer", str(tokenizer), "none beside a lock file, which names its own")
    choice = choose_for(params, list_devices())  # a refusal should not come after a long download
    fetch = partial(
        resolve_model,
        cache_dir=cache_dir,
        endpoint=endpoint,
        token=token,
        offline=offline,
        lock=lock,
        progress=None if progress is None else lambda *done: progress("download", *done),
    )
    files = fetch(model, revision=revision)
    gguf = _read_header(files.weights, preflight=preflight)
    text = _load_tokenizer(gguf, files.tokenizer if tokenizer is None else Path(tokenizer))
    template = None if chat_template is None else _read_template(chat_template, text)
    on_killed = _check_tensors(files, gguf, progress) if preflight else None
    if preflight:
        _check_adapters(params, gguf)
    parts = [files.weights.with_name(name) for name in part_names(files.weights.name)]
    params, tuned = tuned_options(parts, params, choice.name, blobs=files.commit is not None)
    settle = _settling(choice.device.kind)
    draft, draft_gguf = _open_draft(params, gguf, fetch, settle, preflight=preflight, progress=progress)
    params = settle(params, gguf.metadata)
    return Opened(
        make_backend=partial(LlamaBackend, files.weights, params, **tuned),
        preset=params.preset,
        prefix_cache=prefix_cache_for(params, parts, blobs=files.commit is not None),
        tokenizer=text,
        template=template,
        metadata=gguf.metadata,
        is_known_family=has_full_rules(gguf) and (draft_gguf is None or has_full_rules(draft_gguf)),
        on_load=_load_progress(progress, gguf),
        # Of two models nobody knows which one it was.
        on_killed=on_killed if on_killed and draft_gguf is None else lambda _: None,
        state_origin=partial(state_origin, params, parts, blobs=files.commit is not None),
        draft=draft,
    )


def _settling(device_kind: str) -> Settle:
    """Return what decides the attention of a model on such a device, from its options and metadata."""
    from gguf_engine.backend.attention import settle_attention
    from gguf_engine.backend.llama import library_versions

    return partial(settle_attention, system_info=library_versions()["system_info"], device_kind=device_kind)


def _open_draft(
    params: EngineParams,
    target: GGUFFile,
    fetch: Callable[[str], ModelFiles],
    settle: Settle,
    *,
    preflight: bool,
    progress: Progress | None,
) -> tuple[DraftMaker | None, GGUFFile | None]:
    """Return what guesses at the next ids, and the draft model's header if it is a model."""
    from gguf_engine.backend.llama import LlamaBackend
    from gguf_engine.engine.speculative import DraftMaker
    from gguf_engine.loader.draft import check_draft

    if params.draft is None:
        return None, None
    if params.draft == "lookup":
        return DraftMaker(n_max=params.n_draft), None
    try:
        files = fetch(params.draft)
    except ModelNotFoundError as error:
        raise ModelNotFoundError(error.model, f"{error.what}, to be the draft model", error.help) from None
    gguf = _read_header(files.weights, preflight=preflight)
    check_draft(target, gguf)
    if preflight:
        _check_tensors(files, gguf, progress)
    n_ctx = params.n_ctx or min(_n_ctx_train(target), MAX_N_CTX_BY_DEFAULT)
    draft_params = replace(
        params,
        n_ctx=min(n_ctx, _n_ctx_train(gguf)),
        n_cells=params.n_cells or n_ctx,
        n_gpu_layers=0 if params.n_gpu_layers == 0 else None,
        lora=(),
    )
    make_backend = partial(LlamaBackend, files.weights, settle(draft_params, gguf.metadata))
    return DraftMaker(n_max=params.n_draft, make_backend=make_backend), gguf


def _read_header(weights: Path, *, preflight: bool) -> GGUFFile:
    from gguf_engine.loader.gguf import read_gguf
    from gguf_engine.loader.preflight import preflight as check_header

    gguf = read_gguf(weights)
    if preflight:
        check_header(gguf)
    return gguf


def _load_progress(progress: Progress | None, gguf: GGUFFile) -> Callable[[float], object]:
    """Return what takes the share that is loaded and tells it in bytes."""

    def on_load(done: float) -> None:
        if progress is not None:
            progress("load", gguf.path.name, round(done * gguf.size), gguf.size)

    return on_load


def _n_ctx_train(gguf: GGUFFile) -> int:
    """Return the positions a model was trained for; a file that does not say is llama.cpp's to refuse."""
    n_ctx = gguf.metadata.get(f"{gguf.metadata.get('general.architecture')}.context_length")
    return n_ctx if isinstance(n_ctx, int) else 2**24


def _check_tensors(files: ModelFiles, gguf: GGUFFile, progress: Progress | None) -> Callable[[str], object]:
    """Refuse bad weights, and files that killed before; return what remembers that this one kills."""
    from gguf_engine.backend.llama import has_finite_numbers
    from gguf_engine.loader.hub import state_folder
    from gguf_engine.loader.parts import read_parts
    from gguf_engine.loader.tensor_check import check_tensors
    from gguf_engine.loader.verdicts import Verdicts

    verdicts = Verdicts.open(state_folder())
    verdict = check_tensors(
        read_parts(gguf),
        verdicts,
        has_finite_numbers,
        blobs=files.commit is not None,
        progress=None if progress is None else lambda *done: progress("check", *done),
    )
    return lambda what: verdicts.record(replace(verdict, killed=what))


def _check_adapters(params: EngineParams, gguf: GGUFFile) -> None:
    """Refuse LoRA adapters that do not fit the model, or hold bad numbers."""
    from gguf_engine.backend.llama import has_finite_numbers
    from gguf_engine.loader.adapter import check_adapter
    from gguf_engine.loader.gguf import read_gguf
    from gguf_engine.loader.hub import state_folder
    from gguf_engine.loader.parts import read_parts
    from gguf_engine.loader.tensor_check import check_tensors
    from gguf_engine.loader.verdicts import Verdicts

    for text in params.lora:
        try:
            adapter = read_gguf(split_adapter(text)[0])
        except ModelNotFoundError:
            raise OptionError("lora", text, "the path of a GGUF file that is there") from None
        check_adapter(adapter, read_parts(gguf))
        check_tensors((adapter,), Verdicts.open(state_folder()), has_finite_numbers)


def _load_tokenizer(gguf: GGUFFile, path: Path | None) -> Tokenizer:
    """Return the tokenizer.json's tokenizer, compared with the GGUF's own, or the latter alone."""
    if path is None:
        return Tokenizer.from_metadata(gguf.metadata)
    tokenizer = Tokenizer.from_file(path)
    return tokenizer.with_model(gguf.metadata) if "tokenizer.ggml.tokens" in gguf.metadata else tokenizer


def _read_template(chat_template: str | Path, tokenizer: Tokenizer) -> ChatTemplate:
    """Read a template from a file; a string with Jinja in it is the template itself."""
    if not isinstance(chat_template, (str, Path)):
        raise OptionError("chat_template", chat_template, "a file's path, or the template's text")
    text = str(chat_template)
    if isinstance(chat_template, Path) or "{" not in text:
        try:
            text = Path(chat_template).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise OptionError(
                "chat_template", text, "a readable Jinja file, or the template's text", str(error)
            ) from error
    return ChatTemplate.for_tokenizer(text, tokenizer)
