"""Benchmarks against the best peer, ratios before seconds: ``python -m tools.bench NAME… [--json]``.

What this package keeps true: ours and the peer's runs are interleaved in one process on one machine, so a slow minute
hits both; figures are medians; ``ratio`` is oriented so that more is better, whatever the unit. A benchmark is a module
``tools/bench/<name>.py`` with ``run() -> Iterable[Row]``; a hyphen on the command line is an underscore in the file.
"""
