"""Decoding policies: how whole completions are come by, over the engine protocol, on any engine and any profile.

A policy is a frozen value with `complete(engine, backbone, requests)`: one result a request, whose `text` is the completion.
"""
