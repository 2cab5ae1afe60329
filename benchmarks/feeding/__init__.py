"""What `benchmarks/data.py` measures, a module each: `measure(scratch)` returns plain values."""
