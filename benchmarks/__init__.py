"""What picback costs, side by side with what it is compared with. `make bench` runs it all.

Every row sets the product against a named baseline in the same run, because figures of two
runs, let alone of two machines, do not compare. What a row measures, and why so, stands in its
module; what came out, in docs/performance.md.
"""
