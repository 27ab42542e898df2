"""The wire: one file that holds a quantized model and all that is known of it (docs/format.md)."""
