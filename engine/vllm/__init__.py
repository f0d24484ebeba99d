"""The engine protocol on vLLM: for GPUs and at scale. Only this package imports vllm, and only where an engine is made."""
