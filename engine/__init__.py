"""Text out of one backbone with many adapters: requests, batching, decoding policies."""
