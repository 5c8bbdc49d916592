"""Quittance: escrow-settled execution of WebAssembly agents (the layer that all functions share)."""
