"""`python -m gguf_engine` is `gguf-engine`."""

from gguf_engine.cli.main import main

if __name__ == "__main__":
    main()
