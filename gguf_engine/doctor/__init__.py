"""What this machine has, what the llama.cpp build uses of it, and what makes it slow."""
